"""Connections are ranked by what they carry, and go without a trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dresnet_jax.costs import cost
from dresnet_jax.errors import UserError
from dresnet_jax.structure import pruning
from dresnet_jax.structure.pruning import Network, RankedEdge
from dresnet_jax.training import evaluation, experiment
from tests.acceptance.small_run import last_json
from tests.conftest import apply, run_command


def network(config, **connections):
    config.model.connections.update(connections)
    exp = experiment.build(config)
    return Network(exp, exp.create_state())


@pytest.fixture
def deep(small_config):
    small_config.model.blocks_per_stage = (5, 1)
    small_config.model.connections.topology = "dense"
    return small_config


@pytest.mark.parametrize("form", ["folded", "reference", "stacked"])
def test_the_rank_is_that_of_what_is_carried(deep, form):
    result = network(deep, form=form, projection="per_stage")
    ranking = pruning.ranked(result)
    assert len(ranking) == 10
    assert [c.strength for c in ranking] == sorted(c.strength for c in ranking)
    # By hand, for the first block that reads another.
    exp, state = result.experiment, result.state
    model = exp.model.clone()
    images = evaluation.first_batch(exp).images
    _, made = apply(
        pruning.with_form(model, "folded"),
        {"params": state.params, "batch_stats": state.batch_stats},
        images,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name == "block_1",
    )
    y_1 = made["intermediates"]["block_1"]["__call__"][0]
    kernel = state.params["connections"]["stage_0_to_0"]["kernel"]
    expected = 0.5 * jnp.sqrt(jnp.mean((y_1 @ kernel) ** 2))
    (one,) = [c for c in ranking if c.edge == (3, 1)]
    assert one.strength == pytest.approx(float(expected), rel=1e-4)
    assert one.gate == pytest.approx(0.5)


def test_an_edge_that_carries_nothing_goes_first_and_is_not_missed(deep):
    result = network(deep, projection="per_edge")
    params = jax.tree.map(lambda x: x, result.state.params)
    for source in ("from_2", "from_4"):
        kernel = params["connections"]["block_6"][source]["kernel"]
        params["connections"]["block_6"][source]["kernel"] = 0 * kernel
    result = Network(result.experiment, result.state.replace(params=params))
    ranking = pruning.ranked(result)
    assert {c.edge for c in ranking[:2]} == {(6, 2), (6, 4)}
    edges = [c.edge for c in ranking[2:]]
    smaller = pruning.pruned(result, edges)
    assert smaller.experiment.model.spec.connections.topology.edges == tuple(
        sorted(edges)
    )
    images = evaluation.first_batch(result.experiment).images
    logits = [
        apply(
            one.experiment.model,
            {"params": one.state.params, "batch_stats": result.state.batch_stats},
            images,
            train=False,
        )
        for one in (result, smaller)
    ]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_program_has_no_trace_of_what_is_gone(deep):
    result = network(deep)
    smaller = pruning.pruned(result, [(6, 1)])
    config = result.experiment.config.copy_and_resolve_references()
    with config.ignore_type():
        config.model.connections.topology = ((6, 1),)
    counts = [
        cost.of(exp.compile_train_step(), exp.step_flops)
        for exp in (smaller.experiment, experiment.build(config), result.experiment)
    ]
    assert counts[0] == counts[1]
    # A weighted sum alone has no multiply-adds that are counted.
    assert counts[0].bytes_accessed < counts[2].bytes_accessed
    assert counts[0].argument_bytes < counts[2].argument_bytes
    plain = pruning.pruned(result, [])
    assert "connections" not in plain.state.params


def test_averages_of_norms_are_measured_on_what_is_left(deep):
    result = network(deep)
    smaller = pruning.pruned(result, [])
    changes = jax.tree.map(
        lambda a, b: float(np.abs(np.subtract(a, b)).max()),
        smaller.state.batch_stats,
        result.state.batch_stats,
    )
    assert min(jax.tree.leaves(changes)) > 0
    without_norms = deep.copy_and_resolve_references()
    without_norms.model.norm = "group"
    assert not pruning.pruned(network(without_norms), []).state.batch_stats


@pytest.mark.parametrize("good", range(5))
def test_as_many_are_removed_as_accuracy_allows(good):
    ranking = [RankedEdge((9, k), 0.5, k) for k in range(1, 5)]

    def accuracy_of(edges):
        return 0.9 if len(edges) >= 4 - good else 0.5

    left = pruning.most_removed(ranking, accuracy_of, 0.8)
    assert left == [c.edge for c in ranking[good:]]


def test_a_plain_network_cannot_be_pruned(deep):
    deep.model.name = "resnet18"
    with pytest.raises(UserError, match="resnet18 has no learned connections"):
        pruning.ranked(network(deep))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 12 steps."""
    directory = tmp_path_factory.mktemp("prune") / "run"
    code, _, errors = run_command("train", *ARGUMENTS, f"--workdir={directory}")
    assert code == 0, errors
    return directory


ARGUMENTS = (
    "--config=configs/digits.py",
    "--config.model.width=4",
    "--config.model.blocks_per_stage=(3,1)",
    "--config.train.num_steps=12",
)


@pytest.mark.slow
def test_the_command_writes_a_run_that_others_read(run, tmp_path):
    to = tmp_path / "pruned"
    code, output, errors = run_command(
        "prune", f"--workdir={run}", f"--to={to}", "--keep=1", "--json"
    )
    assert code == 0, errors
    result = last_json(output)
    ((reader, source),) = result["edges"]
    assert len(result["removed"]) == 2
    code, output, errors = run_command("evaluate", f"--workdir={to}", "--json")
    assert code == 0, errors
    assert last_json(output)["step"] == 0
    code, output, errors = run_command(
        "train",
        *ARGUMENTS,
        f"--workdir={tmp_path / 'tuned'}",
        f"--config.init.workdir={to}",
        f"--config.model.connections.topology=(({reader},{source}),)",
    )
    assert code == 0, errors
    assert "new here" not in output + errors
    # A second time, over what is there.
    code, _, errors = run_command("prune", f"--workdir={run}", f"--to={to}", "--keep=1")
    assert code == 2
    assert f"error: {to} holds a run" in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep=4"], "--keep=4 must be from 0 to the 3 connections"),
        (["--threshold=-1"], "--threshold=-1.0 must not be below 0"),
        (["--max_loss=2"], "--max_loss=2.0 must be in [0, 1)"),
        ([], "Give one of --keep, --threshold and --max_loss"),
        (["--keep=1", "--threshold=1"], "Give one of --keep, --threshold and"),
    ],
)
def test_wrong_flags_are_one_line(run, tmp_path, flags, message):
    to = tmp_path / "to"
    code, _, errors = run_command("prune", f"--workdir={run}", f"--to={to}", *flags)
    assert code == 2
    assert message in errors.splitlines()[-1]
    assert not to.exists()
