"""A step learns, averages, counts, and smooths as it says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dresnet_jax.connections import gate_values
from dresnet_jax.data import pipeline, sources
from dresnet_jax.training import experiment, steps


@pytest.fixture
def exp(tiny_images_config):
    tiny_images_config.train.num_steps = 30
    tiny_images_config.train.ema_decay = 0.9
    return experiment.build(tiny_images_config)


def first_batch(exp, indices=None):
    """A batch of the first training examples, or of those of some indices."""
    split = sources.open_splits(exp.dataset, "")["train"]
    indices = np.arange(exp.recipe.batch_size) if indices is None else indices
    images, labels = split.images[indices], split.labels[indices]
    return pipeline.make_batch(exp.recipe, jnp.asarray(images), jnp.asarray(labels))


def compiled_step(**options):
    """`train_step` with plain options, or with others."""
    options = {"ema_decay": 0.9, "log_every_steps": 5} | options
    penalty = options.pop("gate_penalty", 0.0)
    loss = functools.partial(
        steps.training_loss, label_smoothing=0.0, gate_penalty=penalty
    )
    return jax.jit(functools.partial(steps.train_step, loss=loss, **options))


def train(exp, num_steps, **options):
    """The state after some steps on one batch, and every step's result."""
    batch, step = first_batch(exp), compiled_step(**options)
    state, results = exp.create_state(), []
    for _ in range(num_steps):
        state, result = step(state, batch)
        results.append(jax.device_get(result))
    return state, results


def test_the_loss_falls_and_the_gates_move(exp):
    before = exp.gate_values(exp.create_state())
    state, results = train(exp, 30)
    assert results[-1].loss < 0.2 * results[0].loss
    assert gate_values.drift(before, exp.gate_values(state)) > 0.01


def test_a_penalty_closes_the_gates_and_is_in_the_loss(exp):
    free, (first, *_) = train(exp, 20)
    held, (penalised, *_) = train(exp, 20, gate_penalty=1.0)
    values, closed = exp.gate_values(free), exp.gate_values(held)
    assert closed[3][1] < values[3][1] - 0.05
    start = exp.gate_values(exp.create_state())[3][1]
    assert float(penalised.loss - first.loss) == pytest.approx(start, rel=1e-4)
    # What is logged is the cross entropy alone.
    means = [result.running.compute()["loss"] for result in (first, penalised)]
    assert means[0] == pytest.approx(means[1])


def test_running_metrics_start_again_after_each_log_line(exp):
    _, results = train(exp, 11, log_every_steps=5)
    losses = [result.loss for result in results]
    for first, last in ((0, 4), (5, 9), (10, 10)):
        means = results[last].running.compute()
        expected = np.mean(losses[first : last + 1])
        np.testing.assert_allclose(means["loss"], expected, rtol=1e-5)
        assert results[last].running.loss.count == 16 * (last - first + 1)


def test_averaged_parameters_follow_and_are_what_is_evaluated(exp):
    state, _ = train(exp, 3)
    assert state.eval_params is state.ema_params

    @jax.jit
    def norms(params, average):
        return optax.tree.norm(optax.tree.sub(params, average)), optax.tree.norm(params)

    distance, whole = norms(state.params, state.ema_params)
    assert 0 < distance < whole


def test_without_a_decay_no_average_is_kept(tiny_images_config):
    state = experiment.build(tiny_images_config).create_state()
    assert state.ema_params is None
    assert state.eval_params is state.params


def test_label_smoothing_spreads_the_label():
    logits = jnp.asarray([[2.0, 0.0, -1.0]])
    targets = jnp.asarray([[1.0, 0.0, 0.0]])
    log_p = jax.nn.log_softmax(logits)[0]
    sharp = steps.cross_entropy(logits, targets, 0.0)
    smooth = steps.cross_entropy(logits, targets, 0.3)
    np.testing.assert_allclose(sharp, [-log_p[0]], rtol=1e-6)
    expected = -(0.8 * log_p[0] + 0.1 * log_p[1] + 0.1 * log_p[2])
    np.testing.assert_allclose(smooth, [expected], rtol=1e-6)


def test_evaluation_leaves_out_what_fills_the_batch(exp):
    state, eval_step = exp.create_state(), jax.jit(steps.eval_step)
    pixels = jnp.ones((4, 16, 16, 3), jnp.uint8)
    labels = jnp.asarray([0, 1, 0, 1])

    def metrics(mask):
        batch = pipeline.make_batch(exp.recipe, pixels, labels, jnp.asarray(mask))
        return eval_step(state, batch)[0]

    assert metrics([True, True, False, False]).loss.count == 2
    assert metrics([True, False, False, False]).accuracy.compute() in (0, 1)
    assert metrics([True] * 4).accuracy.compute() == 0.5


def test_a_batch_in_parts_is_counted_whole_and_learns_alike(exp):
    (_, (whole, *_)), (state, results) = (
        train(exp, 1),
        train(exp, 10, accumulate_steps=4),
    )
    assert results[0].running.loss.count == exp.recipe.batch_size
    # Norms see four examples at a time, so the losses are near, but not the same.
    assert results[0].loss == pytest.approx(whole.loss, rel=0.2)
    assert results[-1].loss < 0.5 * results[0].loss
    assert state.step == 10


def test_without_norms_statistics_the_gradient_of_parts_is_that_of_the_whole(exp):
    """Four copies of four examples: the parts hold the same examples as the whole."""
    batch = first_batch(exp, np.repeat(np.arange(4), 4))
    result = {
        n: compiled_step(gate_penalty=0.1, accumulate_steps=n)(
            exp.create_state(), batch
        )
        for n in (1, 4)
    }
    for a, b in zip(
        jax.tree.leaves((result[1][0].params, result[1][1].loss)),
        jax.tree.leaves((result[4][0].params, result[4][1].loss)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_batch_that_is_not_finite_is_skipped_if_asked(exp):
    batch, step = first_batch(exp, np.arange(4)), compiled_step(skip_non_finite=True)
    before, _ = step(exp.create_state(), batch)
    after, result = step(before, batch.replace(images=batch.images * jnp.nan))
    assert not np.isfinite(result.loss)
    assert (after.step, result.running.loss.count) == (2, 4)
    for name in ("params", "batch_stats", "opt_state", "ema_params"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(after, name), getattr(before, name)
        )
    third, result = step(after, batch)
    assert np.isfinite(result.loss)
    assert not np.array_equal(
        third.params["stem"]["conv"]["kernel"], after.params["stem"]["conv"]["kernel"]
    )


def test_a_step_to_what_is_not_finite_is_skipped_if_asked(tiny_images_config):
    tiny_images_config.optimizer.update(learning_rate=1e39, warmup_fraction=0.0)
    exp = experiment.build(tiny_images_config)
    before, step = exp.create_state(), compiled_step(skip_non_finite=True)
    after, result = step(before, first_batch(exp))
    assert np.isfinite(result.loss)
    assert not result.is_finite
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


def step_of_frozen(config, freeze, shards=1):
    """The state before and after a step, its result, and what was trained on."""
    config.optimizer.freeze = freeze
    exp = experiment.build(config)
    layers = dataclasses.replace(exp.model.spec.layers, norm_shards=shards)
    spec = dataclasses.replace(exp.model.spec, layers=layers)
    before = exp.create_state().replace(model=exp.model.clone(spec=spec))
    batch = first_batch(exp)
    after, result = jax.jit(exp.step)(before, batch)
    return before, after, result, batch


def test_what_is_frozen_has_no_gradient(tiny_images_config):
    before, _, result, batch = step_of_frozen(tiny_images_config, "^(?!head)")

    def loss(params):
        given = before.model, params, before.batch_stats, batch, before.key
        return steps.training_loss(*given, label_smoothing=0.0, gate_penalty=0.0)[0]

    gradients = jax.jit(jax.grad(loss))(before.params)
    assert float(result.grad_norm) == pytest.approx(
        float(optax.tree.norm(gradients["head"])), rel=1e-4
    )
    assert float(result.grad_norm) < 0.9 * float(optax.tree.norm(gradients))


@pytest.mark.parametrize(
    ("freeze", "statistics", "kept", "shards"),
    [
        ("^stem/|^block_1/", True, {"stem", "block_1"}, 1),
        ("^stem/|^block_1/", True, {"stem", "block_1"}, 2),
        ("^stem/|^block_1/", False, set(), 1),
        ("norm.*/(scale|bias)$", True, {"stem", "block_1", "block_2", "block_3"}, 1),
        # These norms are still trained in part.
        ("scale$|kernel$", True, set(), 1),
    ],
)
def test_norms_that_are_frozen_keep_their_statistics(
    tiny_images_config, freeze, statistics, kept, shards
):
    tiny_images_config.optimizer.freeze_statistics = statistics
    before, after, _, _ = step_of_frozen(tiny_images_config, freeze, shards)
    same = jax.tree.map(np.array_equal, before.batch_stats, after.batch_stats)
    of_part = {name: set(jax.tree.leaves(same[name])) for name in same}
    assert of_part == {name: {name in kept} for name in same}


def test_norms_that_are_frozen_compute_as_evaluated(tiny_images_config):
    before, _, _, batch = step_of_frozen(tiny_images_config, "^(?!head)")

    @jax.jit
    def computed(state, batch):
        model = state.model, state.params, state.batch_stats
        trained, _ = steps.forward(*model, batch.images, state.key)
        return trained, steps.eval_step(state, batch)[1]

    trained, evaluated = computed(before, batch)
    np.testing.assert_allclose(trained, evaluated, atol=1e-5)
