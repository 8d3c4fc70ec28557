"""What a network multiplies, counted before any compiler."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jax_core


def multiply_adds(function: Callable[..., object], *arguments: object) -> int:
    """Products of numbers in a function's convolutions and matrix products.

    What papers call a network's multiply-adds, or its FLOPs: of `function` as it is
    written, before any compiler; nothing is run. Of several branches, that of the one
    with most.

    Args:
      function: of arrays, which `jax.jit` could compile.
      arguments: arrays, or their shapes and dtypes.
    """
    return _multiply_adds(jax.make_jaxpr(function)(*arguments).jaxpr)


def _multiply_adds(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [
            equation.params.get("length", 1) * _multiply_adds(jaxpr)
            for jaxpr in jax_core.jaxprs_in_params(equation.params)
        ]
        is_branch = equation.primitive.name == "cond"
        total += max(inner) if is_branch else sum(inner)
        shapes = [getattr(x.aval, "shape", ()) for x in equation.invars]
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += out * math.prod(shapes[0][axis] for axis in contracted)
        if equation.primitive.name == "conv_general_dilated":
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += out * math.prod(shapes[1]) // shapes[1][features]
    return total
