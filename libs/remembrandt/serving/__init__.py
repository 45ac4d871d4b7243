"""Serving: tenants and their databases, and the way from an HTTP request to a picture."""
