"""Stable Diffusion from nothing: the code that the six notebooks explain, train and put together."""

__version__ = "0.1.0"
