"""Early exits on Fashion-MNIST save FLOPs and time, and hardly an answer."""

import json

import numpy as np
import pytest

from tests.acceptance.conftest import SEEDS
from tests.acceptance.small_run import last_json
from tests.conftest import run_command

EXITS = ("--config.model.exits.after=(2,4,6)", "--config.model.exits.head=conv")


@pytest.mark.slow
def test_early_exits_save_a_third_for_a_fifth_of_a_point(train, dresnets, tmp_path):
    with_exits = [train(tmp_path / str(seed), seed, *EXITS) for seed in SEEDS]
    early = []
    for seed in SEEDS:
        code, output, errors = run_command(
            *("evaluate", f"--workdir={tmp_path / str(seed)}"),
            *("--max_loss=0.002", "--json"),
        )
        assert code == 0, errors
        early.append(last_json(output)["measured"])
    means = {
        name: float(np.mean([one[name] for one in early]))
        for name in ("accuracy", "whole_accuracy", "cost", "cost_as_run", "time_ratio")
    }
    last, single = (
        [report["test_accuracy"] for report in reports]
        for reports in (with_exits, dresnets)
    )
    found = {"last exit": last, "one exit": single, "early": early, "means": means}
    print("\n" + json.dumps(found))
    assert means["cost_as_run"] <= 0.7
    assert means["time_ratio"] <= 0.8
    assert means["accuracy"] >= means["whole_accuracy"] - 0.002
    assert np.mean(last) >= np.mean(single) - 0.002
