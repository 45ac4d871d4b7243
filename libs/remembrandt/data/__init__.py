"""Sources of images and captions, safe decoding, and patches."""
