"""Early exits on Fashion-MNIST save FLOPs and time, and hardly an answer."""

import json

import numpy as np
import pytest

from tests.acceptance.small_run import last_json
from tests.conftest import run_command

SEEDS = (0, 1, 2)
# The run of docs/exits.md.
SETTINGS = (
    "--config=configs/fashion_mnist.py",
    "--config.data.train_examples=30000",
    "--config.model.stem=pooled",
    "--config.model.width=8",
    "--config.train.num_epochs=6",
)
EXITS = ("--config.model.exits.after=(2,4,6)", "--config.model.exits.head=conv")


@pytest.mark.slow
def test_early_exits_save_a_third_for_a_fifth_of_a_point(fashion_mnist, tmp_path):
    found = {"exits": [], "one exit": []}
    for seed in SEEDS:
        for name, fields in (("exits", EXITS), ("one exit", ())):
            workdir = tmp_path / f"{name}_{seed}"
            arguments = (
                *SETTINGS,
                *fields,
                f"--config.seed={seed}",
                f"--config.data.data_dir={fashion_mnist}",
                f"--workdir={workdir}",
                "--json",
            )
            code, output, errors = run_command("train", *arguments, timeout=3000)
            assert code == 0, errors
            found[name].append(last_json(output)["test"]["accuracy"])
    early = []
    for seed in SEEDS:
        code, output, errors = run_command(
            *("evaluate", f"--workdir={tmp_path / f'exits_{seed}'}"),
            *("--max_loss=0.002", "--json"),
        )
        assert code == 0, errors
        early.append(last_json(output)["measured"])
    means = {
        name: float(np.mean([one[name] for one in early]))
        for name in ("accuracy", "whole_accuracy", "cost", "cost_as_run", "time_ratio")
    }
    print("\n" + json.dumps({"test accuracy": found, "early": early, "means": means}))
    assert means["cost_as_run"] <= 0.7
    assert means["time_ratio"] <= 0.8
    assert means["accuracy"] >= means["whole_accuracy"] - 0.002
    assert np.mean(found["exits"]) >= np.mean(found["one exit"]) - 0.002
