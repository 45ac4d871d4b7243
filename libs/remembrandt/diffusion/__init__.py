"""Numerics of diffusion alone: noise schedules, guidance, samplers. Tensors in, tensors out."""
