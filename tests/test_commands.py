"""Commands of a few lines, which no other file of tests calls, in this process."""

import json

import pytest

from dresnet_jax.commands import cli
from dresnet_jax.training import run_config
from tests.conftest import run_command

TINY = (
    "--config=configs/digits.py",
    "--config.model.width=4",
    "--config.model.blocks_per_stage=(2, 1)",
)


def report_of(name, *arguments):
    code, output, errors = run_command(name, *arguments, "--json")
    assert code == 0, errors
    return output, json.loads(output.splitlines()[-1])


def test_a_field_has_its_old_name_too(caplog):
    command, given = cli.Command(None, "config"), []

    @command.main
    def main():
        given.append(command.config().model.connections.initial_gate)

    old = "--config.model.connections.opening=0.25"
    assert command.run(["train", *TINY, old]) == 0
    assert given == [0.25]
    new = "config.model.connections.initial_gate"
    assert caplog.text.count(f"--{new}") == 1
    # As in a comparison, whose `base` is such a config.
    old, new = (
        "config.base.model.connections." + x for x in ("opening", "initial_gate")
    )
    assert run_config.new_name(old) == new == run_config.new_name(new)


def test_plan_without_compiling():
    output, plan = report_of("plan", *TINY, "--no_compile")
    assert "temp_bytes" not in plan
    assert plan["flops_per_step"] > 1e6
    assert plan["params"] > 1e3
    assert f"{plan['params']:,} parameters" in output
    assert set(plan["connections_add"]) == {"params", "flops"}
    assert "connections add " in output


def test_expensive_connections_are_warned_of(caplog):
    model = (*TINY, "--config.model.name=dresnet50", "--config.model.width=16")
    published = "--config.model.connections.projection=per_edge"
    _, plan = report_of("plan", *model, published, "--no_compile")
    assert plan["connections_add"]["params"] > 0.1
    assert "More than 10 %" in caplog.text
    caplog.clear()
    _, plan = report_of("plan", *model, "--no_compile")
    assert plan["connections_add"] == {"params": pytest.approx(0, abs=1e-4), "flops": 0}
    assert "More than" not in caplog.text


def test_preview_draws_what_a_config_does(tmp_path):
    path = tmp_path / "preview.png"
    output, report = report_of("preview", *TINY, "--images=4", f"--out={path}")
    assert output.startswith(f"picture: {path}\n")
    assert report == {"picture": str(path), "images": 4}
    assert path.read_bytes().startswith(b"\x89PNG")


def test_weights_go_out_of_a_run_and_into_another(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    files = [tmp_path / f"{n}.safetensors" for n in (1, 2)]
    model = ("--config.model.name=resnet18", f"--workdir={first}")
    report_of("train", *TINY, *model, "--config.train.num_steps=1")
    report_of("convert", f"--workdir={first}", f"--to={files[0]}")
    output, report = report_of(
        "convert",
        *TINY,
        "--config.model.name=resnet18",
        f"--from={files[0]}",
        f"--workdir={second}",
    )
    assert report["library"] == "torchvision"
    assert not report["missing"]
    assert not report["unplaced"]
    assert f"{report['weights']} weights" in output
    report_of("convert", f"--workdir={second}", f"--to={files[1]}")
    assert files[0].read_bytes() == files[1].read_bytes()
