"""The named models: one line each, and the function that builds one from a config."""

import dataclasses

import jax
import ml_collections

from dresnet_jax.connections import topology
from dresnet_jax.connections.module import ConnectionSpec, automatic_form
from dresnet_jax.errors import UserError, pick
from dresnet_jax.models.backbone import Backbone, BackboneSpec, stages
from dresnet_jax.models.blocks import STEMS


@dataclasses.dataclass(frozen=True)
class Model:
    """What a model's name fixes; all else is in the config."""

    shortcut: str
    connected: bool = False
    seed: bool = False


# `seed` is the published form: every convolution has a bias, and no ReLU follows
# the stem's norm.
MODELS = {
    "cnn18": Model(shortcut="none", seed=True),
    "resnet18_seed": Model(shortcut="conv", seed=True),
    "dresnet18_seed": Model(shortcut="conv", connected=True, seed=True),
    "resnet18": Model(shortcut="identity"),
    "dresnet18": Model(shortcut="identity", connected=True),
}
DTYPES = ("float32", "bfloat16")
# The form's name where `automatic_form` chooses it.
AUTOMATIC = "auto"


def build(
    config: ml_collections.ConfigDict, image_size: int, num_classes: int
) -> Backbone:
    """The network that `config.model` names.

    Args:
      config: the `model` part of a config; its fields are explained in
        `configs/common.py`.
      image_size: height and width of the images.
      num_classes: of the dataset.

    Raises:
      UserError: a name is unknown, a value is out of range, or the images are too
        small for the strides.
    """
    model = pick("model", config.name, MODELS)
    pick("stem", config.stem, STEMS)
    pick("model.dtype", config.dtype, dict.fromkeys(DTYPES))
    blocks = tuple(config.blocks_per_stage)
    if not blocks or any(type(n) is not int or n < 1 for n in blocks):
        raise UserError(
            f"model.blocks_per_stage = {blocks} must be whole numbers above 0."
        )
    if config.width < 1:
        raise UserError(f"model.width = {config.width} must be above 0.")
    if not 0 <= config.dropout < 1:
        raise UserError(f"model.dropout = {config.dropout} must be in [0, 1).")
    spec = BackboneSpec(
        num_classes=num_classes,
        stem=config.stem,
        stem_activation=not model.seed,
        block="basic",
        shortcut=model.shortcut,
        width=config.width,
        blocks_per_stage=blocks,
        conv_bias=model.seed,
        dropout=config.dropout,
        dtype=config.dtype,
        connections=_connections(config.connections, model, stages(blocks)),
    )
    spec.connections.check(spec.channels)
    if image_size < spec.total_stride:
        raise UserError(
            f"Images of {image_size}x{image_size} are too small for the strides of "
            f"{config.name} with stem '{config.stem}', {spec.total_stride} in all: use "
            f"images of at least {spec.total_stride}x{spec.total_stride}, stem 'cifar' "
            "or fewer stages."
        )
    return Backbone(spec)


def _connections(
    config: ml_collections.ConfigDict, model: Model, of_blocks: tuple[int, ...]
) -> ConnectionSpec:
    pattern = topology.build(config.topology, of_blocks)
    bias = config.projection_bias
    is_automatic = config.form == AUTOMATIC
    spec = ConnectionSpec(
        topology=pattern if model.connected else topology.none(of_blocks),
        gate=config.gate,
        opening=config.opening,
        weights=config.weights,
        projection=config.projection,
        normalise_sources=config.normalise_sources,
        sharpness=config.sharpness,
        sharpness_granularity=config.sharpness_granularity,
        form="folded" if is_automatic else config.form,
        unroll=config.unroll,
        projection_bias=model.seed if bias is None else bias,
    )
    if is_automatic:
        form, _ = automatic_form(spec, jax.default_backend())
        spec = dataclasses.replace(spec, form=form)
    return spec
