"""Growth is compared with as much training of what does not grow."""

import json

import numpy as np
import pytest

from tests.conftest import run_command

SMALL = (
    "--config.base.data.dataset=digits",
    "--config.base.data.train_examples=512",
    "--config.base.data.validation_examples=128",
    "--config.base.model.stem=cifar",
    "--config.base.model.blocks_per_stage=(3,1)",
)


@pytest.mark.slow
def test_all_variants_cost_as_much(tmp_path):
    directory = tmp_path / "growth"
    flags = [
        "--config=configs/compare/growth.py",
        f"--workdir={directory}",
        "--config.seeds=1",
        *SMALL,
        "--config.base.data.batch_size=32",
        "--config.base.train.num_epochs=4",
        "--config.base.train.log_every_steps=16",
        "--config.base.growth.events=('width',)",
        "--config.base.growth.every_epochs=2",
        "--config.base.growth.max_loss=1.0",
    ]
    code, output, errors = run_command("compare", *flags, "--json")
    assert code == 0, errors
    report = json.loads(output.splitlines()[-1])
    variants = report["variants"]
    for name, one in variants.items():
        print(f"{name}: cost {one['cost']}, parameters {one['params']}")
        np.testing.assert_allclose(one["cost"], 1, atol=0.05)
        assert len(one["test_accuracy"]["values"]) == 1
    assert variants["its last structure"]["params"] == variants["grown"]["params"]
    first = variants["its first structure"]["params"]
    assert all(a < b for a, b in zip(first, variants["grown"]["params"], strict=True))
    assert json.loads((directory / "report.json").read_text()) == report
    assert "grown at random" in (directory / "report.md").read_text()
    # What is done is not done again.
    code, again, errors = run_command("compare", *flags, "--json")
    assert code == 0, errors
    assert json.loads(again.splitlines()[-1])["variants"] == variants
    assert "test accuracy 0" not in again


def test_wrong_values_are_named_before_anything_is_written(tmp_path):
    directory = tmp_path / "growth"
    given = ["--config=configs/compare/growth.py", f"--workdir={directory}"]
    for flag, message in (
        ("--config.seeds=0", "seeds = 0 must be above 0"),
        ("--config.base.growth.events=('widht',)", "widht"),
    ):
        code, _, errors = run_command("compare", *given, *SMALL, flag)
        assert code == 2
        assert message in errors
        assert not directory.exists()
