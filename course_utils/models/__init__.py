"""The networks: weights and shapes, no diffusion maths."""
