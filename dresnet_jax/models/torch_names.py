"""What PyTorch's libraries call the weights of the networks that they have, too."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dresnet_jax.models.backbone_spec import BackboneSpec

# Of a library: a module here, and its name there. {s} and {n} are the numbers of a
# block's stage and of the block in it, from 0, and {s1} the stage's from 1; {0} is the
# first group of the pattern; `_places` has the others. Of a convolution and its norm,
# {at} is 0 and 1, {bn} conv and bn, and {word} convolution and normalization.
_RESNETS = (
    ("stem/(conv|norm)", "{bn}1"),
    ("stem_1/(conv|norm)", "conv1.{at}"),
    ("stem_2/conv", "conv1.3"),
    ("stem_2/norm", "conv1.4"),
    ("stem_3/conv", "conv1.6"),
    ("stem_3/norm", "bn1"),
    (r"block/conv(\d)/(conv|norm)", "layer{s1}.{n}.{bn}{0}"),
    ("block/shortcut/(conv|norm)", "layer{s1}.{n}.downsample.{down}"),
    ("head/linear", "fc"),
)
_SCHEMES: Mapping[str, Mapping[str, tuple[tuple[str, str], ...]]] = {
    "torchvision": {
        "resnet": _RESNETS,
        "inverted": (
            ("stem/(conv|norm)", "features.0.{at}"),
            ("block/expand/(conv|norm)", "features.{i1}.conv.0.{at}"),
            ("block/depthwise/(conv|norm)", "features.{i1}.conv.{e}.{at}"),
            ("block/project/conv", "features.{i1}.conv.{e1}"),
            ("block/project/norm", "features.{i1}.conv.{e2}"),
            ("head/conv/(conv|norm)", "features.{after}.{at}"),
            ("head/linear", "classifier.1"),
        ),
        "convnext": (
            ("stem/(conv|norm)", "features.0.{at}"),
            ("block/downsample_norm", "features.{s_down}.0"),
            ("block/downsample", "features.{s_down}.1"),
            ("block/depthwise", "features.{s_block}.{n}.block.0"),
            ("block/norm", "features.{s_block}.{n}.block.2"),
            ("block/expand", "features.{s_block}.{n}.block.3"),
            ("block/project", "features.{s_block}.{n}.block.5"),
            ("block", "features.{s_block}.{n}"),
            ("head/norm", "classifier.0"),
            ("head/linear", "classifier.2"),
        ),
    },
    "timm": {
        "resnet": (
            *_RESNETS,
            ("block/attention/weights/reduce", "layer{s1}.{n}.se.fc1"),
            ("block/attention/weights/expand", "layer{s1}.{n}.se.fc2"),
            ("block/attention/Conv_0", "layer{s1}.{n}.se.conv"),
        ),
        "preact": (
            ("stem", "stem.conv"),
            (r"block/norm(\d)/norm", "stages.{s}.blocks.{n}.norm{0}"),
            (r"block/conv(\d)", "stages.{s}.blocks.{n}.conv{0}"),
            ("block/shortcut", "stages.{s}.blocks.{n}.downsample.conv"),
            ("head/norm_act/norm", "norm"),
            ("head/linear", "head.fc"),
        ),
        "inverted": (
            ("stem/conv", "conv_stem"),
            ("stem/norm", "bn1"),
            ("block/expand/conv", "blocks.{s}.{n}.conv_pw"),
            ("block/expand/norm", "blocks.{s}.{n}.bn1"),
            ("block/depthwise/conv", "blocks.{s}.{n}.conv_dw"),
            ("block/depthwise/norm", "blocks.{s}.{n}.bn{e1}"),
            ("block/project/conv", "blocks.{s}.{n}.conv_pw{l}"),
            ("block/project/norm", "blocks.{s}.{n}.bn{e2}"),
            ("head/conv/conv", "conv_head"),
            ("head/conv/norm", "bn2"),
            ("head/linear", "classifier"),
        ),
        "convnext": (
            ("stem/(conv|norm)", "stem.{at}"),
            ("block/downsample_norm", "stages.{s}.downsample.0"),
            ("block/downsample", "stages.{s}.downsample.1"),
            ("block/depthwise", "stages.{s}.blocks.{n}.conv_dw"),
            ("block/norm", "stages.{s}.blocks.{n}.norm"),
            ("block/expand", "stages.{s}.blocks.{n}.mlp.fc1"),
            ("block/project", "stages.{s}.blocks.{n}.mlp.fc2"),
            ("block", "stages.{s}.blocks.{n}"),
            ("head/norm", "head.norm"),
            ("head/linear", "head.fc"),
        ),
    },
    "Hugging Face": {
        "resnet": (
            ("stem/(conv|norm)", "resnet.embedder.embedder.{word}"),
            (r"block/conv(\d)/(conv|norm)", "{hf}.layer.{0_}.{word}"),
            ("block/shortcut/(conv|norm)", "{hf}.shortcut.{word}"),
            ("head/linear", "classifier.1"),
        ),
        "inverted": (
            ("stem/(conv|norm)", "mobilenet_v2.conv_stem.first_conv.{word}"),
            ("block/expand/(conv|norm)", "{m2}.expand_1x1.{word}"),
            ("block/depthwise/(conv|norm)", "{m2}.conv_3x3.{word}"),
            ("block/project/(conv|norm)", "{m2}.reduce_1x1.{word}"),
            ("head/conv/(conv|norm)", "mobilenet_v2.conv_1x1.{word}"),
            ("head/linear", "classifier"),
        ),
        "convnext": (
            ("stem/conv", "convnext.embeddings.patch_embeddings"),
            ("stem/norm", "convnext.embeddings.layernorm"),
            ("block/downsample_norm", "{cn}.downsampling_layer.0"),
            ("block/downsample", "{cn}.downsampling_layer.1"),
            ("block/depthwise", "{cn}.layers.{n}.dwconv"),
            ("block/norm", "{cn}.layers.{n}.layernorm"),
            ("block/expand", "{cn}.layers.{n}.pwconv1"),
            ("block/project", "{cn}.layers.{n}.pwconv2"),
            ("block", "{cn}.layers.{n}"),
            ("head/norm", "convnext.layernorm"),
            ("head/linear", "classifier"),
        ),
    },
}
# Kinds of blocks whose names are alike.
_ALIKE = {
    "basic": "resnet",
    "bottleneck": "resnet",
    "bottleneck_v1": "resnet",
    "preact_basic": "preact",
    "preact_bottleneck": "preact",
}
SCHEMES = tuple(_SCHEMES)
# Of a leaf; that of ConvNeXt's scale differs from library to library.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_LAYER_SCALES = {
    "torchvision": "layer_scale",
    "timm": "gamma",
    "Hugging Face": "layer_scale_parameter",
}


def name(scheme: str, spec: BackboneSpec, path: str) -> str | None:
    """Returns the name of a leaf in a library's state dict; None where it has none.

    Args:
      scheme: one of `SCHEMES`.
      spec: of the network.
      path: such as params/block_3/conv1/conv/kernel, or batch_stats/stem/norm/mean.
    """
    rules = _SCHEMES[scheme].get(_ALIKE.get(spec.block, spec.block), ())
    _, *modules, leaf = path.split("/")
    is_norm = modules[-1] == "norm"
    places: dict[str, Any] = {
        "after": len(spec.stages) + 1,
        "at": int(is_norm),
        "bn": "bn" if is_norm else "conv",
        "word": "normalization" if is_norm else "convolution",
    }
    if match := re.fullmatch(r"block_(\d+)", modules[0]):
        modules[0] = "block"
        places |= _places(spec, int(match[1]) - 1)
        places["down"] = places["at"] + (spec.shortcut == "pool")
    for pattern, template in rules:
        if result := re.fullmatch(pattern, "/".join(modules)):
            groups = result.groups()
            if groups and groups[0].isdecimal():
                places["0_"] = int(groups[0]) - 1
            module = template.format(*groups, **places)
            is_scale = pattern == "block"
            return f"{module}.{_LAYER_SCALES[scheme] if is_scale else _LEAVES[leaf]}"
    return None


def _places(spec: BackboneSpec, block: int) -> dict[str, Any]:
    """What the templates of a block's names are filled with."""
    stage = spec.stages[block]
    within = block - spec.stages.index(stage)
    # Whether an inverted residual has its first convolution.
    expands = int(bool(spec.expand) and spec.expand[stage] != 1)
    return {
        "s": stage,
        "s1": stage + 1,
        "n": within,
        "i1": block + 1,
        "e": expands,
        "e1": expands + 1,
        "e2": expands + 2,
        "l": "l" * expands,
        "s_down": 2 * stage,
        "s_block": 2 * stage + 1,
        "hf": f"resnet.encoder.stages.{stage}.layers.{within}",
        "m2": f"mobilenet_v2.layer.{block - 1}" if block else "mobilenet_v2.conv_stem",
        "cn": f"convnext.encoder.stages.{stage}",
    }


def from_torch(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Brings a weight of PyTorch's into its shape here; None where it does not fit.

    Kernels are [height, width, in, out] here and [out, in, height, width] there; those
    of 1x1 convolutions are matrices in some libraries.
    """
    if len(shape) > 1:
        array = array.reshape(array.shape + (1,) * (4 - array.ndim))
        array = array.transpose(2, 3, 1, 0)
    if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        return None
    return array.reshape(shape)


def to_torchvision(array: np.ndarray, name: str) -> np.ndarray:
    """Returns the weight that torchvision calls `name`: `from_torch` turned round."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
        # ConvNeXt's 1x1 convolutions are matrices there.
        if re.search(r"block\.[35]\.weight$", name):
            array = array[:, :, 0, 0]
    elif array.ndim == 2:
        array = array.T
    elif name.endswith("layer_scale"):
        array = array[:, None, None]
    return np.ascontiguousarray(array)
