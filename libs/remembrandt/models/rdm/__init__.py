"""RDM: a latent diffusion model that cross-attends to the CLIP embeddings of retrieved neighbours (P1 §3.2.1)."""
