"""Counts the multiplications of a program before it is compiled.

Compilers count in ways of their own: XLA counts a convolution that cuDNN computes as no
operation, and the body of a loop once. What is counted here is the same everywhere.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jax_core


def multiply_adds(function: Callable[..., object], *arguments: object) -> int:
    """Counts the multiply-adds of a function's convolutions and matrix products.

    As papers count them: a convolution has its whole window at each position, at the
    borders too, and as many in each of its two gradients. The bodies of loops count as
    often as they run; of several branches, the one with most counts.

    Args:
      function: of arrays, which `jax.jit` could compile.
      arguments: arrays, or their shapes and dtypes.

    Raises:
      ValueError: a loop multiplies whose turns are not known.
    """
    return in_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def flops(function: Callable[..., object], *arguments: object) -> float:
    """Counts the floating-point operations: two for each of `multiply_adds`."""
    return 2.0 * multiply_adds(function, *arguments)


def in_jaxpr(jaxpr: Any, scope: str = "") -> int:
    """Counts the multiply-adds of a traced function, as `multiply_adds`.

    Args:
      jaxpr: the function.
      scope: of those modules alone that have this name, where it is not empty.
    """
    total = 0
    for equation in jaxpr.eqns:
        scopes = str(equation.source_info.name_stack).split("/")
        left = "" if scope in scopes else scope
        inner = [
            equation.params.get("length", 1) * in_jaxpr(jaxpr, left)
            for jaxpr in jax_core.jaxprs_in_params(equation.params)
        ]
        if equation.primitive.name == "while" and any(inner):
            raise ValueError("The turns of a while loop that multiplies are not known.")
        is_branch = equation.primitive.name == "cond"
        total += max(inner) if is_branch else sum(inner)
        if not left:
            total += _products(equation)
    return total


def _products(equation: Any) -> int:
    """Count the multiply-adds of one operation, which holds no other."""
    shapes = [getattr(x.aval, "shape", ()) for x in equation.invars]
    out = sum(math.prod(getattr(x.aval, "shape", ())) for x in equation.outvars)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out * math.prod(shapes[0][axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        features = equation.params["dimension_numbers"].rhs_spec[0]
        window = math.prod(shapes[1]) // shapes[1][features]
        # The gradient of a stride spreads its input: the zeros between are no work.
        return out * window // math.prod(equation.params["lhs_dilation"])
    return 0
