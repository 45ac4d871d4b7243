"""The first stage: an autoencoder between pixels and the latents that RDM and RARM model (P1 §3.2, §E.1)."""
