"""Early exits on Fashion-MNIST save FLOPs and time, and hardly an answer."""

import json

import numpy as np
import pytest

from tests.acceptance.conftest import SEEDS
from tests.acceptance.small_run import last_json
from tests.conftest import run_command

EXITS = ("--config.model.exits.after=(2,4,6)", "--config.model.exits.head=conv")


@pytest.fixture(scope="module")
def with_exits(train, tmp_path_factory):
    """Reports of DResNets with exits, one of each seed."""
    directory = tmp_path_factory.mktemp("exits")
    return [train(directory / str(seed), seed, *EXITS) for seed in SEEDS]


def early(reports, wish):
    """The means over runs of what early exits measure on the test split."""
    result = []
    for report in reports:
        workdir = f"--workdir={report['workdir']}"
        code, output, errors = run_command("evaluate", workdir, wish, "--json")
        assert code == 0, errors
        result.append(last_json(output)["measured"])
    means = {
        name: float(np.mean([one[name] for one in result]))
        for name in ("accuracy", "whole_accuracy", "cost", "cost_as_run", "time_ratio")
    }
    print(f"\n{wish}: {json.dumps({'each': result, 'means': means})}")
    return means


@pytest.mark.slow
@pytest.mark.parametrize("wish", ["--budget=0.65", "--max_loss=0.002"])
def test_early_exits_save_a_third_for_a_fifth_of_a_point(with_exits, wish):
    means = early(with_exits, wish)
    assert means["cost_as_run"] <= 0.7
    assert means["time_ratio"] <= 0.8
    assert means["accuracy"] >= means["whole_accuracy"] - 0.002


@pytest.mark.slow
def test_the_last_exit_is_as_good_as_an_only_one(with_exits, dresnets):
    result = {
        name: [(r["val_accuracy"], r["test_accuracy"]) for r in reports]
        for name, reports in (("last exit", with_exits), ("one exit", dresnets))
    }
    print("\nvalidation, test: " + json.dumps(result))
    last, single = (np.mean([test for _, test in x]) for x in result.values())
    assert last >= single - 0.002
