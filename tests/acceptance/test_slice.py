"""The vertical slice: from nothing to a trained DResNet."""

import signal
import statistics

import numpy as np
import pytest
from etils import epath

from dresnet_jax.training import metrics
from tests.acceptance.small_run import (
    GENTLE,
    final_state,
    last_json,
    signal_at,
    timeless_lines,
)
from tests.conftest import SMALL, run_command, run_process, start_command


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


def test_8_devices_give_the_loss_curve_of_1(tmp_path):
    curves = []
    for devices in (1, 8):
        directory = tmp_path / str(devices)
        arguments = (*SMALL, GENTLE, f"--workdir={directory}")
        code, _, errors = run_process("train", *arguments, devices=devices)
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


def test_a_killed_run_ends_as_one_that_was_never_stopped(small_run, tmp_path):
    unbroken, killed = small_run, tmp_path / "killed"
    kills = []
    for target in (9, 26):
        process = start_command("train", *SMALL, f"--workdir={killed}")
        signal_at(process, epath.Path(killed), target, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        kills.append(metrics.read(epath.Path(killed))[-1]["step"])
    code, output, errors = run_command("train", *SMALL, f"--workdir={killed}")
    assert code == 0, errors
    assert "Resuming from the checkpoint" in output
    pairs = list(zip(final_state(unbroken), final_state(killed), strict=True))
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    assert timeless_lines(unbroken) == timeless_lines(killed)
    print(f"\nkilled after steps {kills}: {len(pairs)} arrays equal bit for bit")
