"""A pod is planned on a machine without one; its chips lose little to each other."""

import pytest

from tests.acceptance.small_run import last_json
from tests.conftest import run_command
from tests.costs.test_chips import needs_compiler

IMAGES = 128


def planned(target):
    """What `plan` prints of a DResNet-50 on ImageNet, which is not here."""
    code, output, errors = run_command(
        "plan",
        "--config=configs/imagenet2012.py",
        "--config.model.name=dresnet50",
        f"--target={target}",
        f"--batch_per_chip={IMAGES}",
        "--json",
    )
    assert code == 0, errors
    table = output[output.index(f"{target}: ") :].splitlines()[:-1]
    print("\n" + "\n".join(table))
    return last_json(output)


@needs_compiler
@pytest.mark.slow
def test_chips_lose_little_to_each_other():
    one = planned("v5e:4x4")
    assert one["chips"] == 16
    assert one["hbm_used_bytes"] < one["hbm_total_bytes"]
    assert one["weak_scaling_estimate"] >= 0.95
    for target, chips in (("v5e:16x16", 256), ("2xv5e:4x4", 32)):
        other = planned(target)
        assert (other["chips"], other["batch_size"]) == (chips, IMAGES * chips)
        flops, reduced, read, step = (
            other[name] / one[name]
            for name in (
                "flops_per_chip",
                "reduced_bytes_per_chip",
                "bytes_per_chip",
                "step_seconds_estimate",
            )
        )
        print(
            f"{target} / v5e:4x4, per chip: FLOPs {flops:.5f}, reduced bytes "
            f"{reduced:.5f}, bytes read and written {read:.3f}, images {1 / step:.3f}"
        )
        assert flops == pytest.approx(1, rel=0.01)
        assert reduced <= 1.01
        assert other["weak_scaling_estimate"] >= 0.95
