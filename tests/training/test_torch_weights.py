"""Weights go to PyTorch's files and come back, and nothing is lost in silence."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from configs import synthetic
from dresnet_jax.errors import UserError
from dresnet_jax.models import torch_names
from dresnet_jax.training import experiment, leaves, torch_weights, transfer

TORCHVISION = ("resnet18", "resnet50", "resnext50_32x4d", "mobilenetv2_100")


def parts_of(name, blocks_per_stage=(2, 1)):
    config = synthetic.get_config().unlock()
    config.model.update(name=name, stem="own", width=8)
    config.model.blocks_per_stage = blocks_per_stage
    config.data.update(image_size=32, num_classes=5, batch_size=2, num_examples=8)
    return experiment.build(config)


def weights_of(state):
    return leaves.by_name({"params": state.params, "batch_stats": state.batch_stats})


@pytest.mark.parametrize("name", [*TORCHVISION, "convnext_tiny"])
def test_what_is_written_is_read_again(tmp_path, name):
    exp = parts_of(name)
    state, path = exp.create_state(), tmp_path / "model.safetensors"
    assert torch_weights.write(exp.model.spec, state, path) == ()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    read = torch_weights.read(path)
    placed = torch_weights.place(exp.model.spec, state, read)
    assert (placed.scheme, placed.missing, placed.unplaced) == ("torchvision", (), ())
    other = exp.with_seed(1).create_state()
    result, expected = map(
        weights_of, (transfer.exchange(other, placed.weights), state)
    )
    for leaf, value in expected.items():
        np.testing.assert_array_equal(result[leaf], value, err_msg=leaf)


# Of torchvision 0.2x, timm 1.0 and transformers 5: names a state dict of each has.
KNOWN = {
    ("torchvision", "resnet18", "params/block_3/shortcut/conv/kernel"): (
        "layer2.0.downsample.0.weight"
    ),
    ("torchvision", "resnet50", "batch_stats/block_16/conv3/norm/var"): (
        "layer4.2.bn3.running_var"
    ),
    ("torchvision", "mobilenetv2_100", "params/block_1/project/conv/kernel"): (
        "features.1.conv.1.weight"
    ),
    ("torchvision", "mobilenetv2_100", "params/block_2/project/norm/bias"): (
        "features.2.conv.3.bias"
    ),
    ("torchvision", "mobilenetv2_100", "params/head/conv/conv/kernel"): (
        "features.18.0.weight"
    ),
    ("torchvision", "convnext_tiny", "params/block_4/downsample/kernel"): (
        "features.2.1.weight"
    ),
    ("torchvision", "convnext_tiny", "params/block_4/scale"): (
        "features.3.0.layer_scale"
    ),
    ("timm", "resnet50d", "params/block_1/shortcut/conv/kernel"): (
        "layer1.0.downsample.1.weight"
    ),
    ("timm", "resnet50d", "params/stem_3/norm/scale"): "bn1.weight",
    ("timm", "seresnet50", "params/block_2/attention/weights/reduce/bias"): (
        "layer1.1.se.fc1.bias"
    ),
    ("timm", "resnetv2_50", "params/block_4/shortcut/kernel"): (
        "stages.1.blocks.0.downsample.conv.weight"
    ),
    ("timm", "mobilenetv2_100", "params/block_1/project/conv/kernel"): (
        "blocks.0.0.conv_pw.weight"
    ),
    ("timm", "convnext_tiny", "params/block_1/expand/kernel"): (
        "stages.0.blocks.0.mlp.fc1.weight"
    ),
    ("Hugging Face", "resnet50", "params/block_4/conv3/conv/kernel"): (
        "resnet.encoder.stages.1.layers.0.layer.2.convolution.weight"
    ),
    ("Hugging Face", "mobilenetv2_100", "params/block_1/depthwise/norm/scale"): (
        "mobilenet_v2.conv_stem.conv_3x3.normalization.weight"
    ),
    ("torchvision", "dresnet18", "params/connections/block_3/gate_weights"): None,
}


@pytest.mark.parametrize(("library", "model", "path"), KNOWN)
def test_names_are_the_libraries(library, model, path):
    spec = parts_of(model, blocks_per_stage=None).model.spec
    assert torch_names.name(library, spec, path) == KNOWN[library, model, path]


def written(tmp_path, exp, **changes):
    path = tmp_path / "model.safetensors"
    torch_weights.write(exp.model.spec, exp.create_state(), path)
    arrays = safetensors.numpy.load_file(path) | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    safetensors.numpy.save_file(arrays, path)
    return torch_weights.read(path)


def test_what_has_no_place_is_named(tmp_path):
    exp = parts_of("resnet18")
    extra = {"layer9.weight": np.ones(2, np.float32)}
    extra["bn1.num_batches_tracked"] = np.ones((), np.int64)
    result = written(tmp_path, exp, **extra)
    placed = torch_weights.place(exp.model.spec, exp.create_state(), result)
    assert placed.unplaced == ("layer9.weight",)


def test_a_file_that_cannot_be_written_leaves_no_part_of_it(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    exp, path = parts_of("resnet18"), epath.Path(tmp_path / "model.safetensors")
    monkeypatch.setattr(type(path), "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        torch_weights.write(exp.model.spec, exp.create_state(), path)
    assert not list(tmp_path.iterdir())
    missing = tmp_path / "nowhere" / "model.safetensors"
    with pytest.raises(FileNotFoundError):
        torch_weights.write(exp.model.spec, exp.create_state(), missing)


def test_connections_start_from_scratch(tmp_path):
    plain, dense = (parts_of(name, (2, 1, 1)) for name in ("resnet18", "dresnet18"))
    result = written(tmp_path, plain)
    placed = torch_weights.place(dense.model.spec, dense.create_state(), result)
    assert placed.missing
    assert all(path.startswith("params/connections/") for path in placed.missing)
    state = dense.create_state()
    left = torch_weights.write(dense.model.spec, state, tmp_path / "d.safetensors")
    assert left == tuple(sorted(placed.missing))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bn1.weight": None},
            "1 of its .* leaves have none, such as params/stem/norm",
        ),
        (
            {"fc.weight": np.ones((7, 16), np.float32)},
            r"fc.weight is \(7, 16\) in the file, which does not fit params/head",
        ),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, changes, message):
    exp = parts_of("resnet18")
    result = written(tmp_path, exp, **changes)
    with pytest.raises(UserError, match=message):
        torch_weights.place(exp.model.spec, exp.create_state(), result)


def test_a_network_that_torchvision_lacks_is_not_written(tmp_path):
    exp = parts_of("seresnet50")
    with pytest.raises(UserError, match="torchvision has no such network"):
        torch_weights.write(
            exp.model.spec, exp.create_state(), tmp_path / "x.safetensors"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.safetensors", None, "does not exist"),
        ("bad.safetensors", b"no weights", "is no safetensors file"),
        ("empty.safetensors", b"\x02\0\0\0\0\0\0\0{}", "holds no weights by name"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        torch_weights.read(path)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."]
)
def test_what_programs_put_before_all_names_is_taken_off(tmp_path, prefix):
    exp, path = parts_of("resnet18"), tmp_path / "model.safetensors"
    torch_weights.write(exp.model.spec, exp.create_state(), path)
    whole = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({prefix + name: x for name, x in whole.items()}, path)
    result = torch_weights.read(path)
    assert result.keys() == whole.keys()


def test_a_part_of_a_larger_module_is_named(tmp_path):
    exp, path = parts_of("resnet18"), tmp_path / "model.safetensors"
    torch_weights.write(exp.model.spec, exp.create_state(), path)
    whole = safetensors.numpy.load_file(path)
    renamed = {f"backbone.{name}": x for name, x in whole.items()}
    safetensors.numpy.save_file(renamed, path)
    with pytest.raises(UserError, match=r"leaves have none.*'backbone.bn1.bias'"):
        torch_weights.place(
            exp.model.spec, exp.create_state(), torch_weights.read(path)
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(tmp_path, value):
    bad = {"bn1.weight": np.full(8, value, np.float32)}
    with pytest.raises(UserError, match=r"NaN or infinity, such as 'bn1.weight'"):
        written(tmp_path, parts_of("resnet18"), **bad)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read(tmp_path, dtype):
    exp, path = parts_of("resnet18"), tmp_path / "model.safetensors"
    torch_weights.write(exp.model.spec, exp.create_state(), path)
    whole = safetensors.numpy.load_file(path)
    half = {name: x.astype(dtype) for name, x in whole.items()}
    safetensors.numpy.save_file(half, path)
    state = exp.create_state()
    placed = torch_weights.place(exp.model.spec, state, torch_weights.read(path))
    kernel = "params/block_1/conv1/conv/kernel"
    expected = weights_of(state)[kernel]
    assert placed.weights[kernel].dtype == np.float32
    np.testing.assert_allclose(placed.weights[kernel], expected, rtol=1e-2)
