"""From a request to a picture and the rows that made it: encode, retrieve, sample, decode, record."""
