"""The named models: one line each, and what builds one from a config or a table."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import ml_collections

from dresnet_jax.connections import topology
from dresnet_jax.connections.spec import ConnectionSpec, automatic_form
from dresnet_jax.errors import UserError, pick
from dresnet_jax.models.attention import ATTENTIONS
from dresnet_jax.models.backbone import Backbone, with_form
from dresnet_jax.models.backbone_spec import Architecture, BackboneSpec, stages
from dresnet_jax.models.blocks import BLOCKS
from dresnet_jax.models.conditional import ConditionalSpec
from dresnet_jax.models.exits import ExitSpec
from dresnet_jax.models.layers import ACTIVATIONS, NORMS, Layers
from dresnet_jax.models.mixture import Mixture
from dresnet_jax.models.residual import SHORTCUT_RULES, ResidualScale
from dresnet_jax.models.stems import STEMS
from dresnet_jax.models.table import from_table as from_table

Spec = TypeVar("Spec", ConditionalSpec, ConnectionSpec, Mixture)


@dataclasses.dataclass(frozen=True)
class Model(Architecture):
    """What a model's name fixes.

    A config may name another stem, width, number of blocks, block, shortcut, attention,
    norm, activation, topology or projection.
    """

    norm: str = "batch"
    activation: str = "relu"
    conv_bias: bool = False
    connected: bool = False
    topology: str = "stage_ends"
    projection: str = "between_stages"


_50, _101, _152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
# A layer of more has more weights than any device has memory for.
_MOST_CHANNELS = 2**20

_BOTTLENECK: Any = {"block": "bottleneck"}
# Of pre-activation blocks, whose 1x1 convolutions read what is normalised.
_V2: Any = {"block": "preact_basic", "shortcut": "bare"}
_V2_BOTTLENECK: Any = {"block": "preact_bottleneck", "shortcut": "bare"}
# The published form: every convolution has a bias, no activation follows the stem's
# norm, and each block but the first has a convolution as its shortcut.
_SEED: Any = {
    "conv_bias": True,
    "stem_activation": False,
    "stem": "pooled",
    "topology": "dense",
    "projection": "per_edge",
}
# The networks of He et al. (2015) for CIFAR.
_CIFAR: Any = {"width": 16, "stem": "cifar", "shortcut": "pad"}

_PLAIN = {
    "cnn18": Model(shortcut="none", **_SEED),
    "resnet18_seed": Model(shortcut="conv", **_SEED),
    "resnet18": Model(),
    "resnet34": Model(_50),
    "resnet50": Model(_50, **_BOTTLENECK),
    "resnet101": Model(_101, **_BOTTLENECK),
    "resnet152": Model(_152, **_BOTTLENECK),
    "resnet50d": Model(_50, **_BOTTLENECK, shortcut="pool", stem="deep"),
    "resnetv2_18": Model(**_V2),
    "resnetv2_34": Model(_50, **_V2),
    "resnetv2_50": Model(_50, **_V2_BOTTLENECK),
    "resnetv2_101": Model(_101, **_V2_BOTTLENECK),
    "resnetv2_152": Model(_152, **_V2_BOTTLENECK),
    "resnext50_32x4d": Model(_50, **_BOTTLENECK, groups=32, group_width=4),
    "resnext101_32x8d": Model(_101, **_BOTTLENECK, groups=32, group_width=8),
    "wide_resnet50_2": Model(_50, **_BOTTLENECK, group_width=128),
    "wide_resnet101_2": Model(_101, **_BOTTLENECK, group_width=128),
    "seresnet50": Model(_50, **_BOTTLENECK, attention="se"),
    "ecaresnet50": Model(_50, **_BOTTLENECK, attention="eca"),
    "cbam_resnet50": Model(_50, **_BOTTLENECK, attention="cbam"),
    "mobilenetv2_100": Model(
        (1, 2, 3, 4, 3, 3, 1),
        "inverted",
        "kept",
        width=32,
        ratios=(0.5, 0.75, 1, 2, 3, 5, 10),
        strides=(1, 2, 2, 2, 1, 2, 1),
        stem="strided",
        head="conv",
        expand=(1, 6, 6, 6, 6, 6, 6),
        activation="relu6",
    ),
    "convnext_tiny": Model(
        (3, 3, 9, 3),
        "convnext",
        "always",
        width=96,
        stem="patches",
        head="pooled_norm",
        norm="layer",
        activation="gelu",
    ),
    "resnet20": Model((3, 3, 3), **_CIFAR),
    "resnet56": Model((9, 9, 9), **_CIFAR),
    "resnet110": Model((18, 18, 18), **_CIFAR),
    "wrn28_10": Model((4, 4, 4), **_V2, width=16, ratios=(10, 20, 40), stem="cifar"),
    "dssresnet18": Model(block="separable", shortcut="bare", attention="se"),
    "mixed18": Model(block="mixed"),
}
# Each with learned connections, too.
MODELS = _PLAIN | {
    f"d{name}": dataclasses.replace(model, connected=True)
    for name, model in _PLAIN.items()
}
DTYPES = ("float32", "bfloat16")
# Of the form, where `automatic_form` chooses it; of the stem, where the model does.
AUTOMATIC, OWN = "auto", "own"


def build(
    config: ml_collections.ConfigDict,
    image_size: int,
    num_classes: int,
    norm_shards: int = 1,
    platform: str = "cpu",
    num_devices: int = 1,
    frozen: str = "",
) -> Backbone:
    """Returns the network that `config.model` names.

    Args:
      config: the `model` part of a config; its fields are explained in
        `dresnet_jax/defaults.py`.
      image_size: height and width of the images.
      num_classes: of the dataset.
      norm_shards: parts of a batch whose statistics norms take by themselves.
      platform: "cpu", "gpu" or "tpu", for which `auto` chooses a form.
      num_devices: over which a batch is split.
      frozen: regular expression of the parameters whose batch norms keep their running
        statistics in training; empty for none.

    Raises:
      UserError: a name is unknown, a value is out of range, or the images are too
        small for the strides.
    """
    model = Backbone(_spec(config, num_classes, norm_shards, num_devices, frozen))
    if config.connections.form == AUTOMATIC:
        model = with_form(model, chosen_form(model.spec, platform)[0])
    spec = model.spec
    _check_spec(spec, config)
    if image_size < spec.total_stride:
        raise UserError(
            f"Images of {image_size}x{image_size} are too small for the strides of "
            f"{config.name} with stem '{spec.stem}', {spec.total_stride} in all: use "
            f"images of at least {spec.total_stride}x{spec.total_stride}, stem 'cifar' "
            "or fewer stages."
        )
    return model


def _spec(
    config: ml_collections.ConfigDict,
    num_classes: int,
    norm_shards: int,
    num_devices: int,
    frozen: str,
) -> BackboneSpec:
    """Returns what the `model` part of a config asks for, of a model of the zoo."""
    model = pick("model", config.name, MODELS)
    pick("model.dtype", config.dtype, dict.fromkeys(DTYPES))
    blocks = blocks_per_stage(config)
    _check(config, model, blocks)

    def chosen(field: str, registry: Any) -> str:
        """Returns a field of the config, or the model's own where it is None."""
        value = getattr(model, field) if config[field] is None else config[field]
        pick(f"model.{field}", value, registry)
        return value

    connections = _connections(config.connections, model, stages(blocks))
    own = {f.name: getattr(model, f.name) for f in dataclasses.fields(Architecture)}
    own |= {
        "blocks_per_stage": blocks,
        "width": width(config),
        "stem": model.stem if config.stem == OWN else config.stem,
        "block": chosen("block", BLOCKS),
        "shortcut": chosen("shortcut", SHORTCUT_RULES),
        "attention": chosen("attention", ATTENTIONS),
    }
    return BackboneSpec(
        **own,
        num_classes=num_classes,
        connections=connections,
        dilated_stages=tuple(config.dilated_stages),
        hidden=tuple(config.hidden or ()),
        residual=None
        if config.residual_scale is None
        else ResidualScale(config.residual_scale, config.residual_start),
        mixtures=_mixtures(config.mixture, sum(blocks)),
        zero_last=config.zero_last,
        conditional=None
        if config.conditional.target_rate is None
        # The examples that run a block would have to change devices.
        else _made(ConditionalSpec, config.conditional, compact=num_devices == 1),
        drop_path=config.drop_path,
        dropout=config.dropout,
        exits=_exits(config.exits),
        layers=Layers(
            norm=chosen("norm", NORMS),
            activation=chosen("activation", ACTIVATIONS),
            conv_bias=model.conv_bias,
            norm_shards=norm_shards,
            frozen=frozen,
            dtype=config.dtype,
        ),
    )


def _check_spec(spec: BackboneSpec, config: ml_collections.ConfigDict) -> None:
    """Checks that the parts of a network go together."""
    spec.connections.check(spec.channels)
    spec.exits.check(len(spec.stages))
    _check_hidden(spec)
    if spec.exits.after and spec.connections.topology.is_free:
        raise UserError(
            f"model.exits.after = {spec.exits.after} needs connections.base 'fixed': "
            "the classifier of a free graph reads several blocks."
        )
    if spec.connections.form == "stacked" and spec.unstackable:
        raise UserError(
            f"model.connections.form 'stacked' cannot express {spec.unstackable}: use "
            "'folded' or 'auto'."
        )
    if spec.conditional is not None and not spec.gated:
        raise UserError(
            f"model.conditional.target_rate = {spec.conditional.target_rate}: "
            f"{config.name} with {spec.blocks_per_stage} blocks has none that keeps "
            "the shape, which alone can be skipped; use more blocks."
        )


def _check_hidden(spec: BackboneSpec) -> None:
    """Checks the numbers of channels between the convolutions of blocks."""
    hidden, blocks = spec.hidden, len(spec.stages)
    if hidden and (
        len(hidden) != blocks or any(type(n) is not int or n < 0 for n in hidden)
    ):
        raise UserError(
            f"model.hidden = {hidden} must be {blocks} whole numbers, one for each "
            "block, 0 for its own."
        )
    for i, n in enumerate(hidden, 1):
        if n and (why := spec.fixed_hidden(i)):
            raise UserError(f"model.hidden = {hidden}: block {i} has {why}.")


def _exits(config: ml_collections.ConfigDict) -> ExitSpec:
    """The `model.exits` part of a config."""
    after, weights = tuple(config.after), config.loss_weights
    each = tuple(weights) if isinstance(weights, Sequence) else (weights,) * len(after)
    return ExitSpec(after, each, config.head, config.fusion, config.learn_confidence)


def _check(
    config: ml_collections.ConfigDict, model: Model, blocks: tuple[int, ...]
) -> None:
    pick("stem", config.stem, {**STEMS, OWN: None})
    if not blocks or any(type(n) is not int or n < 1 for n in blocks):
        raise UserError(
            f"model.blocks_per_stage = {blocks} must be whole numbers above 0."
        )
    if model.ratios and len(blocks) > len(model.ratios):
        raise UserError(
            f"model.blocks_per_stage = {blocks}: {config.name} has at most "
            f"{len(model.ratios)} stages."
        )
    if not 1 <= width(config) <= _MOST_CHANNELS:
        raise UserError(
            f"model.width = {config.width:g} must be above 0, and not above "
            f"{_MOST_CHANNELS}."
        )
    if not all(stage in range(1, len(blocks) + 1) for stage in config.dilated_stages):
        raise UserError(
            f"model.dilated_stages = {tuple(config.dilated_stages)} must be numbers of "
            f"stages, 1 to {len(blocks)}."
        )


def _mixtures(
    config: ml_collections.ConfigDict, num_blocks: int
) -> tuple[Mixture, ...]:
    """The operations of each block, and how they are weighted."""
    given = config.operations
    for_all = all(isinstance(one, str) for one in given)
    of_blocks = [given] * num_blocks if for_all else given
    if len(of_blocks) != num_blocks or any(
        not isinstance(names, list | tuple) for names in of_blocks
    ):
        raise UserError(
            f"model.mixture.operations = {given} must be names of operations, or "
            f"{num_blocks} lists of names, one for each block."
        )
    return tuple(_made(Mixture, config, operations=tuple(names)) for names in of_blocks)


def _made(kind: type[Spec], config: ml_collections.ConfigDict, **fields: Any) -> Spec:
    """Makes a spec of some fields, and of a config's with the names of the others.

    Fields of other versions, which the spec lacks, are passed over.
    """
    names = {field.name for field in dataclasses.fields(kind)} - fields.keys()
    return kind(**fields, **{name: getattr(config, name) for name in names})


def width(config: ml_collections.ConfigDict) -> float:
    """Returns the width of `config.model`, or the named model's where it is None.

    Raises:
      UserError: the model is unknown.
    """
    own = pick("model", config.name, MODELS).width
    return own if config.width is None else config.width


def blocks_per_stage(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Returns those of `config.model`, or the named model's own where it has None.

    Raises:
      UserError: the model is unknown.
    """
    if config.blocks_per_stage is not None:
        return tuple(config.blocks_per_stage)
    return pick("model", config.name, MODELS).blocks_per_stage


def chosen_form(spec: BackboneSpec, platform: str) -> tuple[str, str]:
    """Returns the form that `auto` stands for in a network, and why.

    As `automatic_form`; the form of the network's own connections is not read.
    """
    if spec.unstackable:
        return "folded", f"'stacked' cannot express {spec.unstackable}"
    return automatic_form(spec.connections, platform)


def _connections(
    config: ml_collections.ConfigDict, model: Model, of_blocks: tuple[int, ...]
) -> ConnectionSpec:
    """Those of a config, `folded` where the form is yet to be chosen."""
    asked = model.topology if config.topology is None else config.topology
    pattern = topology.build(asked, of_blocks, config.base)
    bias = config.projection_bias
    initial_gate = config.initial_gate
    return _made(
        ConnectionSpec,
        config,
        topology=pattern if model.connected else topology.none(of_blocks),
        initial_gate="bounded" if initial_gate is None else initial_gate,
        projection=config.projection or model.projection,
        form="folded" if config.form == AUTOMATIC else config.form,
        projection_bias=model.conv_bias if bias is None else bias,
    )
