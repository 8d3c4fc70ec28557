"""Residual image networks whose skip connections are learned, in JAX and Flax."""

__version__ = "0.1.0"
