"""Targets that are not here are understood, and their time is the roofline's."""

import importlib.util

import pytest

from dresnet_jax.costs import chips, pod
from dresnet_jax.costs.cost import Cost
from dresnet_jax.errors import UserError
from tests.conftest import run_command, run_python


@pytest.mark.parametrize(
    ("flops", "bytes_accessed", "seconds"),
    [(197e12, 1.0, 1.0), (1.0, 819e9, 1.0), (197e12, 2 * 819e9, 2.0)],
)
def test_the_roofline_is_the_larger_of_the_two_times(flops, bytes_accessed, seconds):
    cost = Cost(flops, bytes_accessed, temp_bytes=0, argument_bytes=0)
    result = pod.estimate(chips.parse("v5e:2x2"), cost, [])
    assert result.alone == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gpu", "must be cpu, or a TPU and how its chips lie"),
        ("v5e", "must be cpu, or a TPU"),
        ("v5e:", "must be cpu, or a TPU"),
        ("v5e:4", "must be cpu, or a TPU"),
        ("0xv5e:2x2", "must be cpu, or a TPU"),
        ("2v5e:2x2", "must be cpu, or a TPU"),
        ("v5e:2x0", "must be cpu, or a TPU"),
        ("v5x:2x2", "Unknown TPU 'v5x'.*v4, v5e, v5p, v6e"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(target, message):
    with pytest.raises(UserError, match=message):
        chips.parse(target)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -r requirements-tpu-plan.txt"):
        chips.devices(chips.parse("v5e:2x2"))


def test_input_is_measured_here_only():
    code, _, errors = run_command("benchmark", "input", "--target=v5e:2x2")
    assert code == 2
    assert errors == "error: --target=v5e:2x2 is for connections only.\n"


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="requirements-tpu-plan.txt is not installed",
)


def test_a_target_may_be_several_slices():
    target = chips.parse("2xv5e:4x8")
    assert target.slices == 2
    assert target.slice_name == "v5e:4x8"
    assert target.chip is chips.CHIPS["v5e"]
    assert chips.parse("v5e:4x8").slices == 1


@pytest.mark.parametrize(
    ("target", "links"),
    [
        ("v5e:1x1", 0),
        ("v5e:1x4", 1),
        ("v5e:4x4", 2),
        ("v5e:8x16", 3),
        ("v5e:16x16", 4),
        ("2xv5e:16x16", 4),
        ("v5p:2x2x4", 3),
        ("v5p:4x4x4", 6),
        ("v4:4x4x8", 6),
    ],
)
def test_links_in_use_are_those_of_the_slices_shape(target, links):
    asked = chips.parse(target)
    expected = links * asked.chip.link_bytes_per_second
    assert asked.links_bytes_per_second == expected


@needs_compiler
@pytest.mark.parametrize(
    ("target", "count", "slices"),
    [
        ("v5e:1x1", 1, 1),
        ("v5e:2x2", 4, 1),
        ("v4:2x2x1", 4, 1),
        ("v5p:2x2x1", 4, 1),
        ("v6e:2x2", 4, 1),
        ("2xv5e:4x4", 32, 2),
    ],
)
def test_a_target_has_its_chips(target, count, slices):
    code = (
        "from dresnet_jax.costs import chips\n"
        f"found = chips.devices(chips.parse('{target}'))\n"
        "print(len(found), len({getattr(d, 'slice_index', 0) for d in found}))"
    )
    status, output, errors = run_python("-c", code)
    assert status == 0, errors
    assert output.splitlines()[-1] == f"{count} {slices}"


@needs_compiler
@pytest.mark.parametrize("target", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_compiler_says_how_much_memory_a_chip_has(target):
    code = (
        "import jax, jax.numpy as jnp\n"
        "from dresnet_jax.costs import chips\n"
        f"target = chips.parse('{target}')\n"
        "place = jax.sharding.SingleDeviceSharding(chips.devices(target)[0])\n"
        "x = jax.ShapeDtypeStruct((200_000, 200_000), jnp.float32, sharding=place)\n"
        "try:\n"
        "    jax.jit(lambda x: x @ x).lower(x).compile()\n"
        "except jax.errors.JaxRuntimeError as error:\n"
        "    print(target.chip.hbm_bytes / 2**30, error)"
    )
    status, output, errors = run_python("-c", code)
    assert status == 0, errors
    result = output.splitlines()[-1]
    assert "RESOURCE_EXHAUSTED" in result
    assert float(result.split()[0]) == pytest.approx(
        float(result.split("available HBM (")[1].split("G")[0]), abs=0.01
    )


@needs_compiler
def test_a_shape_that_does_not_exist_is_refused():
    code, _, errors = run_command("benchmark", "connections", "--target=v5e:3x9")
    assert code == 2
    assert "error: --target=v5e:3x9 is not possible" in errors
    assert "Traceback" not in errors
