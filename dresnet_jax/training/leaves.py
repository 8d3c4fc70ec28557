"""The leaves of a state by their paths, such as params/stem/conv/kernel."""

from collections.abc import Callable
from typing import Any

import jax


def name(path: Any) -> str:
    """Formats a leaf's path, as JAX gives it, for regular expressions."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree: Any) -> dict[str, Any]:
    """Returns every leaf of a tree by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): leaf for path, leaf in leaves}


def map_by_name(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns the tree of what a function makes of each leaf's name and value."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(name(path), leaf), tree
    )
