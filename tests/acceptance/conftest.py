"""Trainings on Fashion-MNIST of minutes each, with which several tests begin."""

import pytest

from tests.acceptance.small_run import last_json
from tests.conftest import run_command

# The run of docs/exits.md.
SETTINGS = (
    "--config=configs/fashion_mnist.py",
    "--config.data.train_examples=30000",
    "--config.model.stem=pooled",
    "--config.model.width=8",
    "--config.train.num_epochs=6",
    "--config.model.connections.topology=dense",
    "--config.model.connections.projection=per_edge",
    "--config.model.connections.initial_gate=0.5",
)
SEEDS = (0, 1, 2)


@pytest.fixture(scope="session")
def train(fashion_mnist):
    """Trains that run with a seed and other fields; returns its report."""

    def run(workdir, seed, *fields):
        arguments = (
            *SETTINGS,
            f"--config.data.data_dir={fashion_mnist}",
            f"--config.seed={seed}",
            *fields,
            f"--workdir={workdir}",
            "--json",
        )
        code, output, errors = run_command("train", *arguments)
        assert code == 0, errors
        return last_json(output)

    return run


@pytest.fixture(scope="session")
def dresnets(train, tmp_path_factory):
    """Reports of DResNets as that run says, one of each seed."""
    directory = tmp_path_factory.mktemp("dresnets")
    return [train(directory / str(seed), seed) for seed in SEEDS]
