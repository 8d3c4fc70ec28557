"""The vertical slice: from nothing to a trained DResNet, and every mistake."""

import json
import signal
import statistics
import time

import jax
import numpy as np
import pytest
from etils import epath

from dresnet_jax.training import checkpointing, experiment, metrics, workdir
from tests.conftest import run_command, start_command
from tests.connections import test_weighted_sum

# A small network on digits: 40 steps, a little over two epochs.
SMALL = (
    "--config=configs/digits.py",
    "--config.model.width=8",
    "--config.model.blocks_per_stage=(1, 1, 1, 1)",
    "--config.train.num_steps=40",
    "--config.train.log_every_steps=1",
    "--config.train.checkpoint_every_steps=6",
)


def last_json(output):
    return json.loads(output.splitlines()[-1])


def final_state(directory):
    """The leaves of the newest checkpoint, as NumPy arrays."""
    directory = epath.Path(directory)
    parts = experiment.build(workdir.read_config(directory))
    restored = checkpointing.restore(directory, parts.create_state(abstract=True))
    assert restored.step == 40
    state = restored.state.replace(key=jax.random.key_data(restored.state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def timeless_lines(directory):
    """The lines of metrics.jsonl, without the figures that are times."""
    times = ("images_per_second", "data_wait")
    return [
        {name: value for name, value in line.items() if name not in times}
        for line in metrics.read(epath.Path(directory))
    ]


@pytest.mark.slow
def test_digits_reach_98_percent_over_5_seeds(tmp_path):
    accuracies = []
    for seed in range(5):
        code, output, errors = run_command(
            "train",
            "--config=configs/digits.py",
            f"--config.seed={seed}",
            f"--workdir={tmp_path / str(seed)}",
        )
        assert code == 0, errors
        accuracies.append(float(output.splitlines()[-1].split()[-1]))
    median = statistics.median(accuracies)
    print(
        f"\ntest accuracy on digits, seeds 0 to 4: median {median:.3f}, "
        f"from {min(accuracies):.3f} to {max(accuracies):.3f}"
    )
    assert median >= 0.98


def test_a_run_prints_gates_pictures_and_last_the_test_accuracy(tmp_path):
    directory = tmp_path / "run"
    code, output, errors = run_command("train", *SMALL, f"--workdir={directory}")
    assert code == 0, errors
    lines = output.splitlines()
    assert any(line.startswith("block  4") for line in lines)
    for name in ("curves.png", "gates.png", "gate_functions.png"):
        assert f"picture: {directory / name}" in lines
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
    assert lines[-1].startswith("test accuracy: 0.")
    assert "Traceback" not in errors

    code, output, _ = run_command("train", *SMALL, f"--workdir={directory}", "--json")
    trained = last_json(output)
    names = {"workdir", "steps", "val_accuracy", "test_accuracy", "gates"}
    assert code == 0
    assert names <= trained.keys()

    code, output, errors = run_command("evaluate", f"--workdir={directory}", "--json")
    evaluated = last_json(output)
    assert code == 0, errors
    assert evaluated["examples"] == 360
    assert evaluated["accuracy"] == trained["test_accuracy"]
    assert evaluated["loss"] == trained["test_loss"]
    assert sum(map(sum, evaluated["confusion"])) == 360
    print(f"\ntrain and evaluate agree: test accuracy {evaluated['accuracy']:.4f}")


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("cnn18", 11_101_512),
        ("resnet18_seed", 11_627_272),
        ("dresnet18_seed", 12_407_517),
    ],
)
def test_plan_gives_the_published_counts(model, params):
    code, output, errors = run_command(
        "plan",
        "--config=configs/synthetic.py",
        "--config.data.image_size=64",
        "--config.data.channels=3",
        "--config.data.num_classes=200",
        f"--config.model.name={model}",
        "--json",
    )
    assert code == 0, errors
    plan = last_json(output)
    print(
        f"\n{model}: {plan['params']:,} parameters, {plan['flops_per_step']:.4g} FLOPs"
    )
    assert plan["model"] == model
    assert plan["params"] == params
    assert plan["flops_per_step"] > 1e9
    assert plan["temp_bytes"] > 1e6


def test_plan_without_compiling(tmp_path):
    code, output, _ = run_command(
        "plan", "--config=configs/digits.py", "--no_compile", "--json"
    )
    assert code == 0
    assert "flops_per_step" not in last_json(output)
    assert last_json(output)["params"] > 1e5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", test_weighted_sum.FAST_FORMS)
def test_forms_agree_with_the_reference(name):
    worst = 0.0
    for seed in range(5):
        inputs = test_weighted_sum.random_inputs(seed, [16, 16, 8, 4], 4, 32, bias=True)
        form = test_weighted_sum.weighted_sum.FORMS[name].function
        reference = test_weighted_sum.weighted_sum.reference
        pairs = zip(
            jax.tree.leaves(test_weighted_sum.value_and_gradients(form, inputs)),
            jax.tree.leaves(test_weighted_sum.value_and_gradients(reference, inputs)),
            strict=True,
        )
        for a, b in pairs:
            worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    print(f"\n{name}: largest relative difference in value and gradients {worst:.2e}")
    assert worst <= 1e-5


def test_8_devices_give_the_loss_curve_of_1(tmp_path):
    curves = []
    for devices in (1, 8):
        directory = tmp_path / str(devices)
        code, _, errors = run_command(
            "train",
            *SMALL,
            # Low, since a high rate multiplies the rounding of a sum taken in another
            # order: once one ReLU flips, the curves part.
            "--config.optimizer.learning_rate=0.003",
            f"--workdir={directory}",
            devices=devices,
        )
        assert code == 0, errors
        lines = metrics.read(epath.Path(directory))
        curves.append([line["train_loss"] for line in lines if "train_loss" in line])
    one, eight = np.asarray(curves)
    worst = np.abs(eight / one - 1).max()
    print(
        f"\n1 and 8 devices: losses of {len(one)} steps differ by at most {worst:.1e}"
    )
    assert len(one) == 40
    assert worst <= 1e-5


def test_a_killed_run_ends_as_one_that_was_never_stopped(tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    code, _, errors = run_command("train", *SMALL, f"--workdir={unbroken}")
    assert code == 0, errors
    kills = []
    for target in (9, 26):
        process = start_command("train", *SMALL, f"--workdir={killed}")
        _signal_at(process, epath.Path(killed), target, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        kills.append(metrics.read(epath.Path(killed))[-1]["step"])
    code, output, errors = run_command("train", *SMALL, f"--workdir={killed}")
    assert code == 0, errors
    assert "Going on from the checkpoint" in output
    pairs = list(zip(final_state(unbroken), final_state(killed), strict=True))
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    assert timeless_lines(unbroken) == timeless_lines(killed)
    print(f"\nkilled after steps {kills}: {len(pairs)} arrays equal bit for bit")


def _signal_at(process, directory, step, number):
    """Sends a signal to a training that has logged a step; returns its last words."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        lines = metrics.read(directory)
        if lines and lines[-1]["step"] >= step:
            process.send_signal(number)
            return process.communicate(timeout=100)[1]
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise TimeoutError(f"Step {step} was never logged.")


@pytest.mark.slow
def test_folded_connections_cost_little(tmp_path):
    code, output, errors = run_command(
        "benchmark", "connections", "--image_size=64", "--json"
    )
    assert code == 0, errors
    print("\n" + "\n".join(output.splitlines()[:-1]))
    assert not list(tmp_path.iterdir())
    rows = {row["form"]: row for row in last_json(output)["rows"]}
    assert rows["folded"]["flops_ratio"] <= 1.09
    assert rows["folded"]["step_ratio"] <= 1.15
    assert rows["reference"]["flops_ratio"] > 1.3


BAD_VALUES = {
    "model.name=dresnet81": "Did you mean 'dresnet18'? Choices: cnn18",
    "model.connections.gate=sigmoit": "Did you mean 'sigmoid'? Choices: gauss",
    "data.dataset=digit": "Did you mean 'digits'?",
    "optimizer.name=adam": "Did you mean 'adamw'?",
    "model.nmae=resnet18": "Unknown field of config.model 'nmae'. Did you mean 'name'?",
    "modle.name=resnet18": "Unknown field of config 'modle'. Did you mean 'model'?",
    "model=resnet18": "config.model is a group",
    "seed=many": "invalid literal",
    "data.batch_size=60": "not divisible by the 8 devices; the nearest that is: 64",
    "data.batch_size=2000": "between 1 and the 1257 training examples",
    "model.stem=imagenet": "8x8 are too small for the strides",
    "model.connections.topology=((2, 5),)": "reader 2, source 5",
    "model.connections.topology=((3, 3),)": "reader 3, source 3",
    "model.connections.topology=dens": "Did you mean 'dense'?",
    "model.connections.opening=1.0": "outside (0, 1)",
    "model.connections.opening=0": "outside (0, 1)",
    "model.connections.sharpness=0": "k = 0.0 must be a number above 0",
    "train.num_steps=0": "must have at least one step",
}


@pytest.mark.parametrize("override", BAD_VALUES)
def test_a_wrong_value_is_one_clear_line(override, tmp_path):
    directory = tmp_path / "run"
    code, output, errors = run_command(
        "train",
        "--config=configs/digits.py",
        f"--workdir={directory}",
        f"--config.{override}",
        devices=8,
    )
    _assert_one_clear_line(code, output, errors, BAD_VALUES[override])
    assert not directory.exists()


def _assert_one_clear_line(code, output, errors, message):
    assert code == 2
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    print(f"\n{errors.strip()}")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["--workdir=new"], "--config is missing: give one of configs/"),
        ("train", ["--config=configs/digits.py"], "--workdir is missing"),
        ("train", ["--config=configs/digit.py"], "configs/digit.py' does not exist"),
        ("train", ["--config.seed=1"], "--config.seed needs --config"),
        ("train", ["--workdri=x"], "Unknown command line flag 'workdri'"),
        ("train", ["digits"], "'digits' is not understood"),
        ("evaluate", [], "--workdir is missing"),
        ("evaluate", ["--workdir=configs"], "configs holds no run"),
        ("evaluate", ["--config=configs/digits.py"], "--config is not a flag"),
        ("evaluate", ["--workdir=x", "--split=val"], "train|validation|test"),
        ("benchmark", ["connections", "--model=cnn18"], "cnn18 has no connections"),
        ("benchmark", ["connections", "--forms="], "No form is named"),
        ("prepare", [], "--dataset is missing"),
        ("prepare", ["--dataset=cifar"], "Unknown dataset 'cifar'"),
        ("benchmark", [], "A word is missing: the subject"),
        ("benchmark", ["conections"], "Did you mean 'connections'?"),
        ("benchmark", ["connections", "--forms=foldd"], "Did you mean 'folded'?"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(command, arguments, message):
    _assert_one_clear_line(*run_command(command, *arguments), message)


BAD_CONFIGS = {
    "def get_config(:": "SyntaxError: invalid syntax (mine.py, line 1)",
    "import nothing_of_this_name": "line 1: ModuleNotFoundError",
    "x = 1": "KeyError: 'get_config'",
    "def get_config():\n    return 3": "returns no ConfigDict",
    "from configs import common\n\n\ndef get_config():\n"
    "    config = common.get_config()\n    config.model.widht = 3": "line 6: ",
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_a_config_file_with_a_mistake_is_one_clear_line(text, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    result = run_command("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    _assert_one_clear_line(*result, BAD_CONFIGS[text])
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_prepared_is_one_clear_line(tmp_path):
    result = run_command(
        "train",
        "--config=configs/fashion_mnist.py",
        f"--config.data.data_dir={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    command = f"dresnet_jax.prepare --dataset=fashion_mnist --data_dir={tmp_path}"
    _assert_one_clear_line(*result, command)
    assert not (tmp_path / "run").exists()


def test_two_trainings_in_one_workdir_do_not_mix(tmp_path):
    directory = epath.Path(tmp_path / "run")
    process = start_command("train", *SMALL, f"--workdir={directory}")
    while not metrics.read(directory):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    second = run_command("train", *SMALL, f"--workdir={directory}", "--overwrite")
    _assert_one_clear_line(*second, "is in use: another process trains in it")
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "plan", "benchmark", "prepare"]
)
def test_every_command_explains_itself(command):
    code, output, errors = run_command(command, "--help")
    assert code == 0
    assert f"python -m dresnet_jax.{command}" in output
    assert "--json:" in output
    assert errors == ""


def test_a_workdir_of_another_run_is_not_touched(tmp_path):
    code, *_ = run_command("train", *SMALL, f"--workdir={tmp_path / 'run'}")
    assert code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = run_command(
        "train", *SMALL, f"--workdir={tmp_path / 'run'}", "--config.model.width=9"
    )
    _assert_one_clear_line(*result, "model.width is 8 there and 9 here")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    code, output, errors = run_command(
        "train",
        *SMALL,
        f"--workdir={tmp_path / 'run'}",
        "--config.model.name=cnn18",
        "--overwrite",
        "--json",
    )
    assert code == 0, errors
    assert last_json(output)["gates"] == {}
    assert not (tmp_path / "run" / "gates.png").exists()


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run"
    result = run_command("train", *SMALL, f"--workdir={path}")
    _assert_one_clear_line(*result, "cannot be written: Not a directory")


def test_damaged_checkpoints_and_none_at_all(tmp_path):
    directory = epath.Path(tmp_path / "run")
    code, *_ = run_command("train", *SMALL, f"--workdir={directory}")
    assert code == 0
    expected = final_state(directory)
    for path in checkpointing._files(directory / "checkpoints" / "40"):
        path.write_bytes(path.read_bytes()[:-10])
    code, output, errors = run_command("evaluate", f"--workdir={directory}", "--json")
    assert code == 0
    assert "Checkpoint 40 cannot be read" in errors
    assert "Going back to checkpoint 36" in errors
    assert "Traceback" not in errors
    assert last_json(output)["step"] == 36
    print(f"\n{errors.strip()}")

    code, output, errors = run_command("train", *SMALL, f"--workdir={directory}")
    assert code == 0, errors
    assert "Going on from the checkpoint of step 36." in output
    assert (directory / "damaged" / "40").exists()
    for a, b in zip(expected, final_state(directory), strict=True):
        np.testing.assert_array_equal(a, b)

    (directory / "checkpoints").rmtree()
    result = run_command("evaluate", f"--workdir={directory}")
    _assert_one_clear_line(*result, "holds no checkpoint: train it first")


def test_a_loss_that_is_not_finite_fails_the_run(tmp_path):
    code, _, errors = run_command(
        "train",
        *SMALL,
        f"--workdir={tmp_path / 'run'}",
        "--config.optimizer.learning_rate=1e30",
    )
    assert code == 1
    assert errors.startswith("error: At step ")
    assert errors.count("\n") == 1
    print(f"\n{errors.strip()}")


@pytest.mark.parametrize("step", [0, 5])
def test_ctrl_c_saves_and_says_how_to_go_on(step, tmp_path):
    directory = epath.Path(tmp_path / "run")
    process = start_command("train", *SMALL, f"--workdir={directory}")
    errors = _signal_at(process, directory, step, signal.SIGINT)
    assert process.returncode == 130
    assert errors.startswith("interrupted after step ")
    assert errors.count("\n") == 1
    saved = int(errors.split()[3].rstrip(","))
    assert checkpointing.steps(directory)[0] == saved
    print(f"\n{errors.strip()}")
