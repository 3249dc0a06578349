"""Weights in and out: our networks under the names of diffusers and transformers, and back."""
