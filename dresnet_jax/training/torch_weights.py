"""Weights in the files of PyTorch's libraries: read, placed, and written."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from dresnet_jax.errors import UserError
from dresnet_jax.models import torch_names
from dresnet_jax.models.backbone_spec import BackboneSpec
from dresnet_jax.training import json_files, leaves
from dresnet_jax.training.state import TrainState

# Leaves that no PyTorch library has.
_OURS = "params/connections/"
# Where files of whole trainings keep the weights, and what parallel training, compiled
# modules and modules inside others put before all of their names.
_INSIDE = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Counted by PyTorch's batch norms, and of no use here.
_COUNTER = "num_batches_tracked"
# How many names an error shows.
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Assigned:
    """Where the weights of a file belong.

    Attributes:
      scheme: whose names the file has, one of `torch_names.SCHEMES`.
      weights: by the path of the leaf here.
      missing: paths of the leaves that the file has no weight for: connections.
      unplaced: names in the file that have no place here.
    """

    scheme: str
    weights: dict[str, np.ndarray]
    missing: tuple[str, ...]
    unplaced: tuple[str, ...]


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads the weights of a .pth, .pt, .bin or .safetensors file, by name.

    Raises:
      UserError: there is no such file, it cannot be read, or a weight is not finite.
    """
    if not path.is_file():
        raise UserError(f"--from={path} does not exist.")
    result = _load(path)
    for name in _INSIDE:
        if isinstance(result, Mapping) and isinstance(result.get(name), Mapping):
            result = result[name]
    weights = {
        name: _array(value)
        for name, value in result.items()
        if isinstance(name, str)
        and hasattr(value, "shape")
        and not name.endswith(_COUNTER)
    }
    if not weights:
        raise UserError(f"--from={path} holds no weights by name.")
    if bad := [name for name, x in weights.items() if not np.isfinite(x).all()]:
        raise UserError(
            f"--from={path}: {len(bad)} of {len(weights)} weights hold NaN or "
            f"infinity, such as {', '.join(map(repr, bad[:_SHOWN]))}."
        )
    while prefixes := [p for p in _PREFIXES if all(x.startswith(p) for x in weights)]:
        weights = {name.removeprefix(prefixes[0]): x for name, x in weights.items()}
    return weights


def _array(value: Any) -> np.ndarray:
    """A weight as NumPy has it: bfloat16, which it lacks, as float32."""
    if hasattr(value, "detach"):  # Of torch, and perhaps an nn.Parameter.
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    is_number = array.dtype.kind in "biuf"
    return array if is_number else array.astype(np.float32)


def _load(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise UserError(
                f"--from={path} is no safetensors file: {error}."
            ) from error
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            f"--from={path} needs torch, which is not installed: "
            "pip install -r requirements-convert.txt"
        ) from error
    try:
        # Weights alone: a pickle could run any code.
        result = torch.load(path, map_location="cpu", weights_only=True)
    # Of torch, pickle and zipfile, each of a type of its own.
    except Exception as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--from={path} holds no weights: {first:.200}") from error
    if not isinstance(result, Mapping):
        raise UserError(f"--from={path} holds no weights by name.")
    return result


def place(
    spec: BackboneSpec, state: TrainState, weights: Mapping[str, np.ndarray]
) -> Assigned:
    """Finds the leaf of every weight, by the names of the library that fits best.

    The state may be its shapes; weights are by their names in the file.

    Raises:
      UserError: a leaf other than the connections' has no weight, or one of another
        shape.
    """
    expected = leaves.by_name(state.variables)
    named = {
        scheme: {
            path: name
            for path in expected
            if (name := torch_names.name(scheme, spec, path)) and name in weights
        }
        for scheme in torch_names.SCHEMES
    }
    scheme = max(named, key=lambda scheme: len(named[scheme]))
    names = named[scheme]
    missing = [path for path in expected if path not in names]
    unplaced = sorted(weights.keys() - set(names.values()))
    lacking = [path for path in missing if not path.startswith(_OURS)]
    if lacking:
        raise UserError(
            f"The weights are not those of this model: {len(lacking)} of its "
            f"{len(expected)} leaves have none, such as {', '.join(lacking[:_SHOWN])}; "
            f"{len(unplaced)} of the file's {len(weights)} weights have no place, such "
            f"as {', '.join(map(repr, unplaced[:_SHOWN]))}."
        )
    result = {}
    for path, name in names.items():
        shape = expected[path].shape
        array = torch_names.from_torch(weights[name], shape)
        if array is None:
            raise UserError(
                f"{name} is {weights[name].shape} in the file, which does not fit "
                f"{path}, {shape}."
            )
        result[path] = array.astype(expected[path].dtype)
    return Assigned(scheme, result, tuple(missing), tuple(unplaced))


def write(spec: BackboneSpec, state: TrainState, path: Path) -> tuple[str, ...]:
    """Writes a safetensors file in torchvision's names.

    Returns:
      Paths of the leaves that torchvision has no name for, which are left out.

    Raises:
      UserError: torchvision has no such network.
    """
    result = leaves.by_name(state.eval_variables)
    names = {path: torch_names.name("torchvision", spec, path) for path in result}
    left = tuple(sorted(path for path, name in names.items() if name is None))
    lacking = [path for path in left if not path.startswith(_OURS)]
    if lacking:
        raise UserError(
            "torchvision has no such network: it has no name for "
            f"{', '.join(lacking[:_SHOWN])}."
        )
    arrays = {
        name: torch_names.to_torchvision(np.asarray(result[path]), name)
        for path, name in names.items()
        if name is not None
    }
    # By the library itself, what cannot be written would be no OSError.
    json_files.write_bytes(epath.Path(path), safetensors.numpy.save(arrays))
    return left
