"""The examples of CONTRIBUTING.md do what it says, as they stand there."""

import json
import re
import types
from pathlib import Path

import pytest
from etils import epath

from dresnet_jax.connections import gates
from dresnet_jax.data import catalog
from dresnet_jax.models import blocks
from dresnet_jax.training import experiment, loop, run_log, workdir
from tests.conftest import ROOT

EXAMPLES = dict(
    re.findall(
        r"^\*\*A ([a-z ]+)\*\* .*?```python\n(.*?)```",
        Path(ROOT, "CONTRIBUTING.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)


def run_example(name, module, monkeypatch, registry, key):
    """Runs an example as a part of a module, whose registry is then as it was."""
    monkeypatch.setitem(registry, key, None)
    exec(compile(EXAMPLES[name], name, "exec"), dict(vars(module)))
    assert registry[key] is not None


def test_there_are_five():
    assert list(EXAMPLES) == ["gate", "block", "dataset", "metric writer", "command"]


def test_a_gate(monkeypatch, small_config):
    run_example("gate", gates, monkeypatch, gates.GATES, "softsign")
    small_config.model.connections.gate = "softsign"
    exp = experiment.build(small_config)
    values = exp.gate_values(exp.create_state())
    assert values[3][1] == pytest.approx(0.5)


def test_a_block_and_a_metric_writer(monkeypatch, small_config, tmp_path):
    run_example("block", blocks, monkeypatch, blocks.BLOCKS, "thin")
    run_example("metric writer", run_log, monkeypatch, run_log.WRITERS, "losses.csv")
    small_config.model.update(block="thin", zero_last=True)
    small_config.train.num_steps = 5
    directory = epath.Path(tmp_path)
    loop.run(experiment.build(small_config), directory)
    kernels = experiment.build(small_config).create_state(abstract=True).params
    assert kernels["block_1"]["conv1"]["conv"]["kernel"].shape[:2] == (1, 1)
    head, line = (directory / "losses.csv").read_text().splitlines()
    assert head == "step,train_loss"
    assert line.startswith("5,")
    assert not list(workdir.strangers(directory))


def test_a_dataset(monkeypatch, small_config):
    run_example("dataset", catalog, monkeypatch, catalog.DATASETS, "kmnist")
    small_config.data.dataset = "kmnist"
    exp = experiment.build(small_config)
    assert (exp.dataset.num_classes, exp.steps_per_epoch) == (10, 55_000 // 64)


def test_a_command(capsys):
    module = types.ModuleType("count")
    exec(compile(EXAMPLES["command"], "count", "exec"), vars(module))
    arguments = ("--config=configs/digits.py", "--config.model.width=4", "--json")
    assert module.command.run(["count", *arguments]) == 0
    text, last = capsys.readouterr().out.splitlines()
    assert text.startswith("dresnet18: ")
    assert json.loads(last)["params"] > 1000
