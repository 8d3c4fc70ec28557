"""Classifiers at several depths answer, learn and are fused as asked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax.errors import UserError
from dresnet_jax.models import counting
from dresnet_jax.models.backbone import Handover, Part
from dresnet_jax.models.exits import CONFIDENCES, ExitSpec
from dresnet_jax.training import evaluation, experiment, steps

IMAGES = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)


def run(model, values, *arguments, **options):
    """A module's `apply`, compiled."""
    return jax.jit(lambda v, *a: model.apply(v, *a, **options))(values, *arguments)


def build(config, **exits):
    config.model.blocks_per_stage = (3, 1)
    config.model.exits.after = (1, 3)
    config.model.exits.update(exits)
    return experiment.build(config)


def variables(exp):
    """Random ones, since many leaves start at 0."""
    state, rng = exp.create_state(), np.random.default_rng(0)
    tree = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree.map(
        lambda x: x + 0.1 * np.abs(rng.normal(size=x.shape).astype(np.float32)), tree
    )


@pytest.mark.parametrize(
    ("fusion", "model"),
    [
        ("none", {"name": "dresnetv2_18"}),
        ("mean", {"name": "resnet18"}),
        ("learned", {"name": "dresnet18"}),
        ("attention", {"name": "dresnet18"}),
    ],
)
def test_parts_one_after_the_other_are_the_network(small_config, fusion, model):
    small_config.model.update(model)
    small_config.model.connections.normalise_sources = fusion == "mean"
    exp = build(small_config, fusion=fusion)
    values = variables(exp)
    whole = run(exp.model, values, IMAGES, train=False)
    before = IMAGES
    for number in range(3):
        part = Part(exp.model.spec, number=number)
        before, answer, _ = run(part, values, before)
    np.testing.assert_allclose(answer, whole, rtol=1e-5, atol=1e-5)
    assert isinstance(before, Handover)
    assert list(before.outputs) == [4]


def test_only_what_is_read_later_is_carried(small_config):
    small_config.model.connections.topology = ((4, 2),)
    exp = build(small_config)
    values = variables(exp)
    handover, _, _ = run(Part(exp.model.spec, number=0), values, IMAGES)
    assert list(handover.outputs) == [1]
    handover, _, _ = run(Part(exp.model.spec, number=1), values, handover)
    assert list(handover.outputs) == [2, 3]


def test_a_stack_is_scanned_up_to_an_exit(small_config):
    result = []
    for form in ("stacked", "folded"):
        small_config.model.connections.update(form=form, projection="per_stage")
        exp = build(small_config, after=(2,), loss_weights=0.5)
        assert [list(blocks) for blocks in exp.model.spec.alike][:2] == [[1, 2], [3]]
        result.append(run(exp.model, variables(exp), IMAGES, train=False))
    np.testing.assert_allclose(*result, rtol=1e-5, atol=1e-5)


def losses(exp, values, **changes):
    """The loss of a batch in training, and its gradient."""
    batch = evaluation.first_batch(exp)
    spec = dataclasses.replace(
        exp.model.spec, exits=dataclasses.replace(exp.model.spec.exits, **changes)
    )
    model = exp.model.clone(spec=spec)

    def loss(params):
        logits, updates = steps.forward(
            model, params, values["batch_stats"], batch.images, jax.random.key(0)
        )
        last = steps.cross_entropy(logits, batch.targets, 0.1).mean()
        more = steps.supervision(spec.exits, updates, batch.targets, 0.1)
        return last + more, (updates["exits"], last)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(values["params"])


def test_the_loss_is_that_of_every_classifier(small_config):
    exp = build(small_config)
    (total, (sown, last)), _ = losses(exp, variables(exp))
    (answers,) = sown["answers"]
    targets = evaluation.first_batch(exp).targets
    each = [
        optax.softmax_cross_entropy(answer, optax.smooth_labels(targets, 0.1)).mean()
        for answer in answers
    ]
    assert total == pytest.approx(float(last + each[0] + each[1]), rel=1e-5)


@pytest.mark.slow
def test_weights_are_of_the_blocks_gradients_alone(small_config):
    exp = build(small_config)
    values = variables(exp)
    batch = evaluation.first_batch(exp)

    def last(params):
        logits, _ = steps.forward(
            exp.model, params, values["batch_stats"], batch.images, jax.random.key(0)
        )
        return steps.cross_entropy(logits, batch.targets, 0.1).mean()

    def gradients(*weights):
        _, result = losses(exp, values, loss_weights=weights)
        own = {name: result.pop(name) for name in ("exit_1", "exit_3")}
        return result, own

    alone = jax.jit(jax.grad(last))(values["params"])
    (none, own), (first, _), (second, _), (both, same) = (
        gradients(*weights) for weights in ((0, 0), (1, 0), (0, 1), (0.5, 2))
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, none, {name: alone[name] for name in none})
    jax.tree.map(close, own, same)
    expected = jax.tree.map(
        lambda n, f, s: n + 0.5 * (f - n) + 2 * (s - n), none, first, second
    )
    jax.tree.map(close, both, expected)
    assert np.any(own["exit_1"]["linear"]["kernel"])
    assert np.any(first["stem"]["conv"]["kernel"] != none["stem"]["conv"]["kernel"])


def test_a_training_step_supervises_every_exit(small_config):
    exp = build(small_config, learn_confidence=True)
    state = exp.create_state()
    new, _ = jax.jit(exp.step)(state, evaluation.first_batch(exp))
    for name in ("exit_1", "exit_3", "confidence_1", "confidence_3", "head"):
        before, after = (x.params[name]["linear"]["kernel"] for x in (state, new))
        assert np.any(before != after), name


def test_confidence_teaches_the_network_nothing(small_config):
    exp = build(small_config, learn_confidence=True)
    values = variables(exp)
    _, taught = losses(exp, values)
    _, plain = losses(exp, values, learn_confidence=False)
    assert np.any(taught.pop("confidence_1")["linear"]["kernel"])
    taught.pop("confidence_3")
    plain = {k: v for k, v in plain.items() if not k.startswith("confidence")}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        taught,
        plain,
    )


def test_a_mean_is_that_of_the_logits(small_config):
    values = variables(build(small_config))
    exp = build(small_config)
    before, own = IMAGES, []
    for number in range(3):
        before, logits, _ = run(Part(exp.model.spec, number=number), values, before)
        own.append(logits)
    small_config.model.exits.fusion = "mean"
    fused = run(experiment.build(small_config).model, values, IMAGES, train=False)
    np.testing.assert_allclose(fused, np.mean(own, axis=0), rtol=1e-5, atol=1e-5)


def test_the_last_answer_alone_costs_nothing_more(small_config):
    def flops(exp):
        state = exp.create_state()
        values = {"params": state.params, "batch_stats": state.batch_stats}
        logits = functools.partial(exp.model.apply, train=False)
        return counting.flops(logits, values, IMAGES)

    assert flops(build(small_config)) == flops(build(small_config, after=()))


@pytest.mark.parametrize("name", CONFIDENCES)
def test_confidences_are_from_0_to_1_and_grow(name):
    logits = jnp.asarray([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [50.0, 0.0, 0.0]])
    result = CONFIDENCES[name](logits, jnp.asarray([-60.0, 0.0, 60.0]))
    assert np.all(np.diff(result) > 0)
    least = 1 / 3 if name == "probability" else 0.0
    np.testing.assert_allclose(result[jnp.array([0, 2])], [least, 1.0], atol=1e-6)


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ({"after": (4,)}, "after = (4,) must be numbers of blocks before the last, 1"),
        ({"after": (0, 2)}, "after = (0, 2) must be"),
        ({"after": (3, 1)}, "after = (3, 1) must be"),
        ({"loss_weights": (1.0,)}, "one for each of the 2 exits"),
        ({"loss_weights": -1.0}, "not below 0"),
        ({"fusion": "median"}, "fusion"),
        ({"head": "deep"}, "head"),
    ],
)
def test_wrong_values_are_named(small_config, exits, message):
    with pytest.raises(UserError) as error:
        build(small_config, **exits)
    assert message in str(error.value)


def test_a_free_graph_has_one_classifier(small_config):
    small_config.model.connections.base = "learned"
    with pytest.raises(UserError, match="needs connections\\.base"):
        build(small_config)


def test_a_spec_without_exits_is_right_for_any_depth():
    ExitSpec().check(1)
