"""Seeds in one program end as each alone, and continue after a stop bit for bit."""

import io
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath

from dresnet_jax.training import (
    checkpointing,
    experiment,
    late_report,
    loop,
    metrics,
    together,
    workdir,
)

SEEDS = (3, 4)


def train(config, place, seeds=SEEDS, output=io.StringIO):
    """Trains seeds, each in the slot that it has in SEEDS; returns what failed."""
    exp = experiment.build(config)
    members = {}
    for seed in seeds:
        member = exp.with_seed(seed)
        directory = epath.Path(place / str(seed))
        with workdir.claim(directory, member.config, overwrite=False):
            pass
        members[SEEDS.index(seed)] = together.Member(member, directory, output())
    return together.Group(members, len(SEEDS)).train()


def params(config, place, seed):
    """The parameters of a run's newest checkpoint, one after another."""
    abstract = experiment.build(config).create_state(abstract=True)
    restored = checkpointing.restore(epath.Path(place / str(seed)), abstract)
    leaves = jax.tree.leaves(jax.device_get(restored.state.params))
    return np.concatenate([leaf.ravel() for leaf in leaves])


def numbers(place, seed):
    """What a run wrote, except for the times."""
    names = ("step", "train_loss", "train_accuracy", "val_loss", "gates")
    lines = metrics.read(epath.Path(place / str(seed)))
    return [{name: line[name] for name in names if name in line} for line in lines]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(small_config, shared):
    """Two seeds trained to their ends, side by side, which no test changes."""
    if not any(shared.iterdir()):
        assert train(small_config, shared) == {}
    return shared


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_each_ends_as_alone(small_config, tmp_path, mode):
    small_config.data.mode = mode
    # Other programs round differently, which a high rate makes more of at each step.
    small_config.optimizer.learning_rate = 0.0003
    train(small_config, tmp_path / "group")
    for seed in SEEDS:
        small_config.seed = seed
        alone = epath.Path(tmp_path / "alone" / str(seed))
        with workdir.claim(alone, small_config, overwrite=False):
            report = loop.run(experiment.build(small_config), alone)
        result = params(small_config, tmp_path / "group", seed)
        expected = params(small_config, tmp_path / "alone", seed)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
        assert report["seed"] == seed
        pairs = zip(
            numbers(tmp_path / "group", seed),
            numbers(tmp_path / "alone", seed),
            strict=True,
        )
        for ours, theirs in pairs:
            assert ours.keys() == theirs.keys()
            assert ours["step"] == theirs["step"]


def test_the_other_slots_change_no_bit(small_config, whole, tmp_path):
    train(small_config, tmp_path / "single", seeds=SEEDS[1:])
    assert numbers(tmp_path / "single", SEEDS[1]) == numbers(whole, SEEDS[1])
    result, expected = (
        params(small_config, place, SEEDS[1]) for place in (tmp_path / "single", whole)
    )
    np.testing.assert_array_equal(result, expected)


def test_runs_that_were_killed_apart_come_together_again(small_config, whole, tmp_path):
    place = tmp_path / "again"
    shutil.copytree(whole, place)
    for seed, lost in zip(SEEDS, [(12,), (12, 8)], strict=True):
        (place / str(seed) / "report.json").unlink()
        for step in lost:
            shutil.rmtree(place / str(seed) / "checkpoints" / str(step))
    train(small_config, place)
    for seed in SEEDS:
        assert numbers(place, seed) == numbers(whole, seed)
        np.testing.assert_array_equal(
            params(small_config, place, seed), params(small_config, whole, seed)
        )


class Interrupts(io.StringIO):
    """Where a person presses Ctrl-C, once, at the sight of step 5."""

    pressed = False

    def write(self, text):
        if text.startswith("step      5") and not Interrupts.pressed:
            Interrupts.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def test_ctrl_c_saves_them_all(small_config, whole, tmp_path):
    place = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        train(small_config, place, output=Interrupts)
    for seed in SEEDS:
        assert checkpointing.steps(epath.Path(place / str(seed))) == [6, 4]
        assert not (place / str(seed) / "report.json").exists()
    train(small_config, place)
    for seed in SEEDS:
        assert numbers(place, seed) == numbers(whole, seed)


def test_the_one_that_failed_is_named(small_config, tmp_path):
    small_config.optimizer.learning_rate = 1e30
    small_config.optimizer.clip_norm = 0.0
    failed = train(small_config, tmp_path)
    assert failed.keys() == {0, 1}
    for error in failed.values():
        assert isinstance(error, late_report.NonFiniteLossError)
