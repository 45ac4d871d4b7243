"""Re-Imagen: a cascade of pixel diffusion models grounded on retrieved pairs of image and text (P2 §3.2)."""
