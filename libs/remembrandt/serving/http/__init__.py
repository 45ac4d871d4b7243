"""The HTTP API: FastAPI over a `Backend`, in one process or in front of a Ray cluster."""

from remembrandt.serving.http.app import create_app

__all__ = ["create_app"]
