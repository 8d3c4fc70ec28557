"""Plans add up, estimates follow from counts, and what is unknown is not printed."""

import dataclasses

import jax
import pytest

from dresnet_jax.costs import chips, pod, tables
from dresnet_jax.costs.collectives import Group
from dresnet_jax.costs.cost import Cost
from dresnet_jax.training import experiment
from tests.acceptance.small_run import last_json
from tests.conftest import run_command, run_python
from tests.costs.test_chips import needs_compiler

# A second of arithmetic, two of memory, and of what is sent.
COST = Cost(197e12, 2 * 819e9, temp_bytes=0, argument_bytes=0)
GROUPS = [
    Group("all-reduce", False, 3, 2**20, 2**10, sent_bytes=1e10),
    Group("all-reduce", True, 3, 2**20, 2**10, sent_bytes=3.125e9),
]


def test_a_step_is_the_longer_of_arithmetic_and_memory_and_what_is_sent():
    seconds = pod.estimate(chips.parse("2xv5e:4x4"), COST, GROUPS)
    assert dataclasses.astuple(seconds) == pytest.approx((1, 2, 0.1, 1))
    assert seconds.step == pytest.approx(3.1)
    assert seconds.bound == "memory"
    assert seconds.weak_scaling == pytest.approx(2 / 3.1)


def test_a_full_pods_links_are_twice_as_fast():
    result = [
        pod.estimate(chips.parse(target), COST, GROUPS).interconnect
        for target in ("v5e:4x4", "v5e:16x16")
    ]
    assert result == pytest.approx([0.1, 0.05])


def test_one_chip_alone_scales_perfectly():
    seconds = pod.estimate(chips.parse("v5e:1x1"), COST, [])
    assert seconds.weak_scaling == 1


@pytest.fixture
def plan(tiny_images_config):
    part = experiment.build(tiny_images_config)
    return pod.of(part, chips.parse("v5e:1x1"), part.compile_train_step())


def test_memory_adds_up(plan):
    memory = plan.memory
    state = plan.part.create_state(abstract=True)
    assert memory.params == 4 * sum(x.size for x in jax.tree.leaves(state.params))
    assert memory.average == 0
    assert memory.params <= memory.optimizer < 1.1 * memory.params
    images = jax.tree.leaves(plan.part.inputs.abstract(1))[0]
    assert memory.data >= images.size
    parts = dataclasses.asdict(memory)
    used, total = parts.pop("used"), parts.pop("total")
    assert sum(parts.values()) + memory.other == used < total


def test_a_run_is_its_steps(plan):
    step = plan.seconds.step
    assert plan.images_per_second == pytest.approx(16 / step)
    assert plan.run_hours == pytest.approx(plan.part.num_steps * step / 3600)
    assert plan.peak_share == pytest.approx(plan.cost.flops / 197e12 / step)
    report = plan.report()
    assert report["chip_hours_estimate"] == pytest.approx(plan.run_hours)
    assert report["collective_bytes_per_chip"] == 0
    table = tables.pod_table(plan)
    assert "no collectives" in table
    assert "weak scaling                             1.000" in table


@pytest.mark.parametrize(
    "field", [("train", "accumulate_steps", 2), ("model", "blocks_per_stage", (4,))]
)
def test_nothing_is_estimated_where_a_loop_was_counted_as_one_turn(
    tiny_images_config, field
):
    group, name, value = field
    tiny_images_config[group][name] = value
    if group == "model":
        tiny_images_config.model.connections.update(form="stacked", projection="none")
    part = experiment.build(tiny_images_config)
    plan = pod.of(part, chips.parse("v5e:1x1"), part.compile_train_step())
    assert plan.seconds is None
    assert plan.report()["step_seconds_estimate"] is None
    assert plan.report()["chip_hours_estimate"] is None
    assert "no estimates" in tables.pod_table(plan)


def test_a_sweep_names_the_largest_that_fits(plan, monkeypatch):
    def make(_config, _target, batch):
        if batch > 16:
            raise pod.DoesNotFitError("too large")
        return plan

    monkeypatch.setattr(pod, "make", make)
    sweep = pod.sweep(plan.part.config, plan.target, [16, 32])
    report = pod.sweep_report(sweep)
    assert sweep[report["largest_batch_per_chip"]] is plan
    assert [row["fits"] for row in report["sweep"]] == [True, False]
    assert "does not fit" in tables.sweep_table(sweep).splitlines()[-1]
    with pytest.raises(pod.DoesNotFitError, match="No batch fits"):
        pod.sweep(plan.part.config, plan.target, [32])


def test_collectives_of_shards_are_found():
    # What a chip adds up is the gradient of every parameter, and the norms' statistics.
    code = """
import jax
from configs import synthetic
from dresnet_jax.costs import chips, pod
from dresnet_jax.training import experiment
for fsdp in (1, 4):
    config = synthetic.get_config()
    config.model.width = 4
    config.model.blocks_per_stage = (1, 1, 1)
    config.sharding.fsdp = fsdp
    part = experiment.build(config)
    plan = pod.of(part, chips.parse("v5e:2x2"), part.compile_train_step())
    params = part.create_state(abstract=True).params
    whole = 4 * sum(x.size for x in jax.tree.leaves(params))
    print(plan.reduced_bytes / whole, plan.memory.params / whole, plan.collectives)
"""
    status, output, errors = run_python("-c", code, devices=4)
    assert status == 0, errors
    whole, split = (line.split(maxsplit=2) for line in output.splitlines())
    assert 1 < float(whole[0]) < 1.2
    assert float(whole[1]) == 1
    assert float(split[1]) < 0.5
    assert "all-gather" in split[2]


SMALL = (
    "--config=configs/synthetic.py",
    "--config.data.num_examples=100000",
    "--config.model.width=8",
    "--config.model.blocks_per_stage=(1, 1, 1)",
)


@needs_compiler
def test_a_pod_is_planned_without_its_data():
    code, output, errors = run_command(
        "plan", *SMALL, "--target=2xv5e:2x2", "--batch_per_chip=4", "--json"
    )
    assert code == 0, errors
    report = last_json(output)
    assert (report["chips"], report["batch_size"]) == (8, 32)
    assert report["target"] == "2xv5e:2x2"
    assert 0 < report["hbm_used_bytes"] < report["hbm_total_bytes"]
    assert report["flops_per_chip"] > 0
    assert report["bytes_per_chip"] > 0
    assert 0 < report["weak_scaling_estimate"] < 1
    assert {group["across_slices"] for group in report["collectives"]} == {True, False}
    # Gradients of all parameters, of 4 bytes, and statistics.
    assert report["reduced_bytes_per_chip"] > 4 * report["params"]


@needs_compiler
def test_what_does_not_fit_is_one_clear_line():
    code, output, errors = run_command(
        "plan",
        *SMALL,
        "--config.data.mode=streaming",
        "--config.data.image_size=256",
        "--config.model.blocks_per_stage=(1,)",
        "--target=v5e:1x1",
        "--batch_per_chip=65536",
    )
    assert code == 1
    assert output == ""
    line = errors.splitlines()[-1]
    assert line.startswith("error: A batch of 65536 per chip does not fit v5e:1x1")
    assert "train.accumulate_steps" in line
    assert "Traceback" not in errors
