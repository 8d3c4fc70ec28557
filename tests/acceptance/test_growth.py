"""Runs that grow come to the same, however many devices and processes they have."""

import json

import numpy as np
import pytest
from etils import epath

from dresnet_jax.training import evaluation, leaves
from tests.acceptance.small_run import finish, start_processes

GROWING = (
    "--config=configs/digits.py",
    "--config.data.train_examples=256",
    "--config.model.width=8",
    "--config.model.blocks_per_stage=(3, 1)",
    "--config.model.connections.topology=none",
    "--config.train.num_steps=28",
    "--config.train.log_every_steps=4",
    "--config.growth.events=('connections', 'width', 'depth')",
    "--config.growth.every_epochs=2",
    "--config.growth.trial_batches=2",
    "--config.growth.trial_steps=4",
    "--config.growth.max_loss=1.0",
    # As for other runs of several layouts, and lower, since a change divides weights
    # by sums that are rounded otherwise.
    "--config.optimizer.learning_rate=0.00005",
)


def grown(directory):
    """The events of a run, and its last parameters."""
    lines = (directory / "history.jsonl").read_text().splitlines()
    _, restored = evaluation.open_run(epath.Path(directory))
    assert restored.step == 28
    params = leaves.by_name(restored.state.params)
    return [json.loads(line) for line in lines], params


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    directory = tmp_path_factory.mktemp("growth") / "run"
    finish(start_processes(1, 1, *GROWING, workdir=directory))
    return grown(directory)


@pytest.mark.parametrize(
    "layout",
    [(2, 4), *(pytest.param(x, marks=pytest.mark.slow) for x in ((1, 8), (2, 1)))],
)
def test_a_grown_run_is_the_same_on_every_layout(one_device, tmp_path, layout):
    directory = tmp_path / "run"
    finish(start_processes(*layout, *GROWING, workdir=directory))
    (expected, before), (history, after) = one_device, grown(directory)
    assert [e["result"] for e in history] == ["accepted"] * 3
    for result, known in zip(history, expected, strict=True):
        assert result["what"] == known["what"]
    scale = max(float(np.abs(x).max()) for x in before.values())
    largest = max(float(np.abs(before[n] - after[n]).max()) for n in before)
    print(
        f"\n{layout[0]} processes x {layout[1]} devices, three events: largest "
        f"relative difference of a parameter {largest / scale:.1e}"
    )
    assert before.keys() == after.keys()
    assert largest <= 1e-5 * scale
