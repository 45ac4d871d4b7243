"""Build, verify, publish, open and search image databases."""
