"""Targets that are not here are understood, and their time is the roofline's."""

import importlib.util

import pytest

from dresnet_jax.analysis import chips
from dresnet_jax.analysis.cost import Cost
from dresnet_jax.errors import UserError
from tests.conftest import run_command, run_python


@pytest.mark.parametrize(
    ("flops", "bytes_accessed", "seconds"),
    [(197e12, 1.0, 1.0), (1.0, 819e9, 1.0), (197e12, 2 * 819e9, 2.0)],
)
def test_the_roofline_is_the_larger_of_the_two_times(flops, bytes_accessed, seconds):
    cost = Cost(flops, bytes_accessed, temp_bytes=0, argument_bytes=0)
    assert chips.chip("v5e:2x2").roofline_seconds(cost) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gpu", "must be cpu, or a TPU and how its chips lie"),
        ("v5e", "must be cpu, or a TPU"),
        ("v5e:", "must be cpu, or a TPU"),
        ("v5e:4", "must be cpu, or a TPU"),
        ("v5x:2x2", "Unknown TPU 'v5x'.*v4, v5e, v6e"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(target, message):
    with pytest.raises(UserError, match=message):
        chips.chip(target)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-tpu-plan.txt"):
        chips.devices("v5e:2x2")


def test_input_is_measured_here_only():
    code, _, errors = run_command("benchmark", "input", "--target=v5e:2x2")
    assert code == 2
    assert errors == "error: --target=v5e:2x2 is for connections only.\n"


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="requirements-tpu-plan.txt is not installed",
)


@needs_compiler
@pytest.mark.parametrize(("target", "count"), [("v5e:2x2", 4), ("v4:2x2x1", 4)])
def test_a_target_has_its_chips(target, count):
    code = (
        f"from dresnet_jax.analysis import chips; print(len(chips.devices('{target}')))"
    )
    status, output, errors = run_python("-c", code)
    assert status == 0, errors
    assert int(output.splitlines()[-1]) == count


@needs_compiler
def test_a_shape_that_does_not_exist_is_refused():
    code, _, errors = run_command("benchmark", "connections", "--target=v5e:3x9")
    assert code == 2
    assert "error: --target=v5e:3x9 is not possible" in errors
    assert "Traceback" not in errors
