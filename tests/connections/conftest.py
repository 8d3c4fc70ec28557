"""In this folder arrays of different types do not mix unseen.

Only here: flax's norms, optax and clu mix types on purpose.
"""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield
