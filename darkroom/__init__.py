"""Darkroom: develop your own Stable Diffusion from your own photos."""

__version__ = "0.1.0"
