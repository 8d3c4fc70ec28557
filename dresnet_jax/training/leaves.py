"""The leaves of a state by their paths, such as params/stem/conv/kernel."""

from typing import Any

import jax


def name(path: Any) -> str:
    """Formats a leaf's path, as JAX gives it, for regular expressions."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree: Any) -> dict[str, Any]:
    """Returns every leaf of a tree by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): leaf for path, leaf in leaves}
