"""Remembrandt: retrieval-augmented image generation on a Ray cluster."""

__version__ = "0.1.0"
