"""Networks as StableHLO, with all that is needed to classify images with them.

A directory holds `network.jax`, which `jax.export.deserialize` reads: logits of pixels,
for any batch size, on CPU, GPU and TPU; `signature.json`, which says what goes in, what
comes out and what the classes are called; and `weights.safetensors`.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from etils import epath

import dresnet_jax
from dresnet_jax.data import pipeline
from dresnet_jax.data.views import View
from dresnet_jax.errors import UserError
from dresnet_jax.inference.folding import folded
from dresnet_jax.models.backbone import uncompacted
from dresnet_jax.training import json_files, leaves
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

_NETWORK, _SIGNATURE, _WEIGHTS = "network.jax", "signature.json", "weights.safetensors"
_PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Exported:
    """A network that was exported.

    Attributes:
      call: from [batch, size, size, channels] uint8 pixels to float32 logits.
      view: how images become pixels.
      class_names: by label.
      signature: all that `signature.json` says.
    """

    call: Any
    view: View
    class_names: tuple[str, ...]
    signature: dict[str, Any]


def write(
    exp: Experiment, state: TrainState, directory: epath.Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Writes a network for inference, whole or not at all.

    Args:
      exp: the experiment.
      state: of it; averaged weights are taken where there are.
      directory: that does not exist yet.
      about: where it comes from, of JSON's types.

    Returns:
      The signature.

    Raises:
      UserError: the directory exists, or cannot be written.
    """
    if directory.exists():
        raise UserError(f"{directory} exists: choose another directory.")
    model, variables = folded(exp.model, state.eval_params, state.batch_stats)
    # A batch of any size has no parts of known sizes.
    model = uncompacted(model)
    dataset, size = exp.dataset, exp.dataset.image_size

    def logits(pixels: jax.Array) -> Any:
        images = pipeline.normalise(exp.recipe, pixels)
        return model.apply(variables, images, train=False)

    (batch,) = jax.export.symbolic_shape("batch")
    pixels = jax.ShapeDtypeStruct((batch, size, size, dataset.channels), np.uint8)
    program = jax.export.export(jax.jit(logits), platforms=_PLATFORMS)(pixels)
    signature = {
        "input": _array("pixels", "uint8", size, size, dataset.channels),
        "output": _array("logits", "float32", dataset.num_classes),
        "class_names": list(dataset.class_names),
        "fixed_size": dataset.fixed_size,
        "pixel_rule": exp.recipe.view.rule,
        "background": exp.recipe.view.background,
        "platforms": list(_PLATFORMS),
        "edges": model.spec.connections.topology.edges,
        "versions": {"dresnet_jax": dresnet_jax.__version__, "jax": jax.__version__},
        **about,
    }
    network = bytes(program.serialize())
    arrays = {k: np.asarray(v) for k, v in leaves.by_name(variables).items()}
    weights = safetensors.numpy.save(arrays)
    signature["sha256"] = _digests(signature, network, weights)
    partial = directory.with_name(directory.name + ".partial")
    try:
        if partial.exists():
            partial.rmtree()
        partial.mkdir(parents=True)
        (partial / _NETWORK).write_bytes(network)
        (partial / _SIGNATURE).write_text(json.dumps(signature, indent=2) + "\n")
        (partial / _WEIGHTS).write_bytes(weights)
        partial.rename(directory)
    except OSError as error:
        shutil.rmtree(os.fspath(partial), ignore_errors=True)
        raise UserError(
            f"{directory} cannot be written: {error.strerror or error}."
        ) from error
    return signature


def read(directory: epath.Path) -> Exported:
    """Reads what `write` wrote.

    Raises:
      UserError: the directory holds no such thing, or it is damaged.
    """
    path = directory / _SIGNATURE
    try:
        with json_files.reading(path):
            signature = json.loads(path.read_text())
        network = (directory / _NETWORK).read_bytes()
    except OSError as error:
        raise UserError(
            f"{directory} holds no exported network: {error.strerror or error}."
        ) from error
    except RecursionError as error:
        raise UserError(f"{path} is damaged.") from error
    _check_digests(directory, signature, network)
    with json_files.reading(path):
        _, size, _, channels = signature["input"]["shape"]
        view = View(
            size,
            channels,
            signature["fixed_size"],
            # Those of earlier versions do not say.
            rule=signature.get("pixel_rule", 1),
            background=signature.get("background", 255),
        )
        class_names = tuple(signature["class_names"])
        if [type(x) for x in (size, channels, view.fixed_size)] != [int, int, bool]:
            raise TypeError("a value of another type")
    try:
        call = jax.export.deserialize(bytearray(network)).call
    # Of flatbuffers, MLIR and JAX, each of a type of its own.
    except Exception as error:
        raise UserError(
            f"{directory / _NETWORK} cannot be read by JAX {jax.__version__}: export "
            "it again."
        ) from error
    return Exported(call, view, class_names, signature)


def _array(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": ["batch", *shape]}


def _digests(
    signature: dict[str, Any], network: bytes, weights: bytes
) -> dict[str, str]:
    """The SHA-256 of each file; of the signature, that of what else it says."""
    said = {k: v for k, v in signature.items() if k != "sha256"}
    text = json.dumps(said, sort_keys=True)
    files = {_NETWORK: network, _WEIGHTS: weights, _SIGNATURE: text.encode()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _check_digests(directory: epath.Path, signature: Any, network: bytes) -> None:
    digests = signature.get("sha256") if isinstance(signature, dict) else None
    if not isinstance(digests, dict) or _NETWORK not in digests:
        raise UserError(f"{directory / _SIGNATURE} is damaged: it holds no digests.")
    path = directory / _WEIGHTS
    result = _digests(signature, network, path.read_bytes() if path.exists() else b"")
    names = (_NETWORK, _SIGNATURE, _WEIGHTS)
    # Earlier versions wrote that of the network alone.
    for name in names if len(digests) > 1 else names[:1]:
        if digests.get(name) != result[name]:
            raise UserError(f"{directory / name} is damaged: export it again.")
