"""Conditional paths save time, not only operations."""

import pytest

from tests.acceptance.small_run import last_json
from tests.conftest import run_command


@pytest.mark.slow
def test_most_of_the_operations_saved_are_time_saved():
    code, output, errors = run_command(
        "benchmark",
        "conditional",
        "--config=configs/fashion_mnist.py",
        "--config.model.name=resnet18",
        "--config.model.stem=pooled",
        "--config.model.width=16",
        "--batch_size=256",
        "--rates=1,0.75,0.5,0.25",
        "--runs=9",
        "--json",
    )
    assert code == 0, errors
    print("\n" + "\n".join(output.splitlines()[:-1]))
    rows = {row["rate"]: row for row in last_json(output)["rows"]}
    for rate in (0.75, 0.5, 0.25):
        row = rows[rate]
        assert abs(row["open_share"] - rate) < 0.1
        # All that is run holds all that must be, and the gates cost something.
        assert row["batch_flops_saving"] <= row["flops_saving"] < 1 - rate
        assert row["time_saving"] >= 0.6 * row["flops_saving"]
    assert rows[1]["flops_saving"] < 0
