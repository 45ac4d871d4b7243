"""Contrastive training of image and text towers (CLIP)."""
