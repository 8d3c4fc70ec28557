"""Residual image networks whose skip connections are learned, in JAX and Flax."""

from pathlib import Path

__version__ = "0.1.0"

# Finds `python -m dresnet_jax.train` in commands/.
__path__.append(str(Path(__file__).parent / "commands"))
