"""From a request to a picture and the rows that made it: encode, retrieve, sample, decode, record."""

from remembrandt.generation.generator import Generator, Picture
from remembrandt.generation.records import Record, encode_png, read_record
from remembrandt.generation.requests import DatabaseRef, PictureRequest

__all__ = ["DatabaseRef", "Generator", "Picture", "PictureRequest", "Record", "encode_png", "read_record"]
