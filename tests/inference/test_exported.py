"""What is exported is the network, and needs nothing of this package."""

import json
import shutil
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from dresnet_jax import defaults
from dresnet_jax.data import pipeline
from dresnet_jax.inference import exported
from dresnet_jax.inference.folding import folded
from dresnet_jax.models import zoo
from dresnet_jax.training import evaluation, experiment
from tests.acceptance.small_run import last_json
from tests.conftest import apply, init, run_command

GATES = {
    "dresnet18": {"gate": "sigmoid"},
    "dresnetv2_18": {"gate": "gauss", "sharpness_granularity": "per_edge"},
    "dresnet50": {"gate": "softmax", "projection": "per_stage"},
    "dresnet50d": {"gate": "tanh", "weights": "per_channel"},
    "dcbam_resnet50": {"gate": "hard_sigmoid", "weights": "by_distance"},
    "dmobilenetv2_100": {"gate": "gauss", "sharpness_granularity": "per_block"},
    "dconvnext_tiny": {"gate": "identity"},
    "dcnn18": {"gate": "softmax", "weights": "by_distance", "projection": "per_stage"},
    "resnet18": {},
}


SLOW = ("dmobilenetv2_100", "dcbam_resnet50", "dresnet50d", "dresnetv2_18")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in GATES
    ],
)
def test_a_folded_network_is_the_same_function(name):
    config = defaults.get_config().unlock().model
    config.update(name=name, width=4, stem="cifar", blocks_per_stage=(2, 2))
    config.connections.update(initial_gate="published", **GATES[name])
    if GATES[name].get("gate") == "softmax":
        config.connections.initial_gate = 0.5
    model = zoo.build(config, 32, 5)
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    variables = init(model, jax.random.key(1), images, train=False)
    params = jax.tree.map(
        lambda x: x + 0.05 * np.random.RandomState(2).standard_normal(x.shape),
        variables["params"],
    )
    params = jax.tree.map(jnp.float32, params)
    # The averages of these very images: a batch enters by a tenth.
    old = variables.get("batch_stats", {})
    given = {"params": params, "batch_stats": old}
    _, new = apply(model, given, images, train=True, mutable=["batch_stats"])
    stats = jax.tree.map(
        lambda a, b: (a - 0.9 * b) / 0.1, new.get("batch_stats", {}), old
    )
    result = {"params": params, "batch_stats": stats}
    expected = apply(model, result, images, train=False)
    smaller, variables = folded(model, params, stats)
    logits = apply(smaller, variables, images, train=False)
    error = float(jnp.abs(logits - expected).max() / jnp.abs(expected).max())
    assert jnp.ptp(expected, axis=0).min() > 1e-3, "it answers to its images"
    print(f"\n{name}: {error:.1e} of the largest logit")
    assert error < 1e-5
    fresh = jax.eval_shape(lambda: smaller.init(jax.random.key(0), images, train=False))
    assert jax.tree.structure(fresh["params"]) == jax.tree.structure(
        variables["params"]
    )
    names = {path[-1].key for path, _ in jax.tree.leaves_with_path(variables["params"])}
    assert "gate_sharpness" not in names
    if name == "dresnet18":
        assert not variables["batch_stats"]


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """A run, its network exported, and an image."""
    directory = tmp_path_factory.mktemp("export")
    shutil.copytree(small_run, directory / "run")
    code, output, errors = run_command(
        "export", f"--workdir={directory / 'run'}", f"--to={directory / 'to'}", "--json"
    )
    assert code == 0, errors
    assert last_json(output)["step"] == 40
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8), np.uint8)
    cv2.imwrite(str(directory / "image.png"), pixels)
    return directory


ALONE = """
import json, sys
sys.modules["dresnet_jax"] = sys.modules["flax"] = None  # An import of them fails.
import jax, numpy as np
directory, pixels, logits = sys.argv[1:]
network = open(directory + "/network.jax", "rb").read()
program = jax.export.deserialize(bytearray(network))
signature = json.load(open(directory + "/signature.json"))
images = np.load(pixels)
assert images.shape[1:] == tuple(signature["input"]["shape"][1:])
np.save(logits, [program.call(images[:n])[0] for n in (1, 5, len(images))])
"""


@pytest.mark.slow
def test_it_gives_the_same_logits_where_this_package_is_not(run, tmp_path):
    exp, restored = evaluation.open_run(epath.Path(run / "run"))
    images = exp.open_splits()["test"].images[:7]
    np.save(tmp_path / "pixels.npy", images)
    subprocess.run(
        [sys.executable, "-c", ALONE, run / "to", "pixels.npy", "logits.npy"],
        check=True,
        cwd=tmp_path,
    )
    expected = apply(
        exp.model,
        {
            "params": restored.state.params,
            "batch_stats": restored.state.batch_stats,
        },
        pipeline.normalise(exp.recipe, jnp.asarray(images)),
        train=False,
    )
    for logits in np.load(tmp_path / "logits.npy"):
        np.testing.assert_allclose(logits, expected[0], rtol=1e-5, atol=1e-5)


def test_predict_reads_it(run):
    tops = []
    for flag in (f"--workdir={run / 'run'}", f"--exported={run / 'to'}"):
        code, output, errors = run_command("predict", flag, run / "image.png", "--json")
        assert code == 0, errors
        tops.append(last_json(output)["predictions"][0]["top"])
    assert [x["class"] for x in tops[0]] == [x["class"] for x in tops[1]]
    np.testing.assert_allclose(
        *([x["probability"] for x in top] for top in tops), rtol=1e-4
    )


def test_mistakes_are_one_line(run, tmp_path):
    code, _, errors = run_command(
        "export", f"--workdir={run / 'run'}", f"--to={run / 'to'}"
    )
    assert (code, f"error: {run / 'to'} exists" in errors) == (2, True)
    code, _, errors = run_command("export", f"--workdir={run / 'run'}")
    assert (code, "--to is missing" in errors) == (2, True)
    image = run / "image.png"
    code, _, errors = run_command("predict", f"--exported={tmp_path / 'no'}", image)
    assert (code, "holds no exported network: No such file" in errors) == (2, True)
    damaged = tmp_path / "damaged"
    shutil.copytree(run / "to", damaged)
    data = (damaged / "network.jax").read_bytes()
    (damaged / "network.jax").write_bytes(data[: len(data) // 2])
    code, _, errors = run_command("predict", f"--exported={damaged}", image)
    assert (code, "is damaged" in errors) == (2, True), errors
    (damaged / "signature.json").write_text(json.dumps({})[:1])
    code, _, errors = run_command("predict", f"--exported={damaged}", image)
    assert (code, "is damaged" in errors) == (2, True), errors


def test_conditional_paths_are_exported_masked(tiny_images_config, tmp_path):
    config = tiny_images_config
    config.model.conditional.target_rate = 0.5
    exp = experiment.build(config)
    state = exp.create_state()
    exported.write(exp, state, epath.Path(tmp_path / "to"), {})
    pixels = np.random.RandomState(0).randint(256, size=(5, 16, 16, 3)).astype(np.uint8)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images = pipeline.normalise(exp.recipe, pixels)
    expected = apply(exp.model, variables, images, train=False)
    result = exported.read(epath.Path(tmp_path / "to")).call(pixels)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
