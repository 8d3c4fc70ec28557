"""Checkpoints come back as they were, and damaged ones are never used."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import SingleDeviceSharding

from dresnet_jax.errors import RunFailedError, UserError
from dresnet_jax.training import checkpointing, digests, sharding


def state(value):
    return {
        "weights": jnp.full((40, 40), value, jnp.float32),
        "key": jax.random.key(3),
        "absent": None,
    }


def open_checkpoints(workdir, **keep):
    policy = checkpointing.keep(**({"newest": 2} | keep))
    return checkpointing.Checkpoints(workdir, policy, about={"seed": 3})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(digests, "_PAUSES", (0, 0, 0))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run directory with the checkpoints of steps 20 and 30, of 10, 20 and 30."""
    workdir = epath.Path(tmp_path_factory.mktemp("written"))
    with open_checkpoints(workdir) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state(float(step)))
    return workdir


@pytest.fixture
def saved(written, tmp_path):
    """A copy of `written`."""
    shutil.copytree(written, tmp_path / "saved")
    return epath.Path(tmp_path / "saved")


def abstract():
    return sharding.abstract(state(0.0), SingleDeviceSharding(jax.devices()[0]))


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_empty(path):
    path.write_bytes(b"")


def damage_remove(path):
    path.unlink()


def files(workdir, step):
    """The files of a checkpoint, its digests aside."""
    checkpoint = workdir / "checkpoints" / str(step)
    return [path for path in digests.files(checkpoint) if ".json" not in path.name]


def test_the_newest_are_kept_and_come_back(saved):
    assert checkpointing.steps(saved) == [30, 20]
    restored = checkpointing.restore(saved, abstract())
    assert restored.step == 30
    assert restored.damaged == ()
    np.testing.assert_array_equal(restored.state["weights"], state(30.0)["weights"])
    assert jnp.array_equal(restored.state["key"], jax.random.key(3))
    assert restored.state["absent"] is None


def test_a_relative_directory_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_checkpoints(epath.Path("run")) as checkpoints:
        checkpoints.save(5, state(5.0))
    assert checkpointing.restore(epath.Path("run"), abstract()).step == 5


def test_without_checkpoints_there_is_nothing(tmp_path):
    assert checkpointing.restore(epath.Path(tmp_path), abstract()) is None


def damage_replace(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_flip, damage_empty, damage_remove, damage_replace],
)
def test_damage_to_any_file_leads_back_to_the_checkpoint_before(saved, damage, caplog):
    contents = {path: path.read_bytes() for path in files(saved, 30)}
    assert len(contents) > 5
    for path, content in contents.items():
        damage(path)
        restored = checkpointing.restore(saved, abstract())
        assert restored.step == 20, path
        assert restored.damaged == (30,)
        np.testing.assert_array_equal(restored.state["weights"][0, 0], 20.0)
        assert str(path.name) in caplog.text
        if path.is_dir():
            path.rmdir()
        path.write_bytes(content)
    assert checkpointing.restore(saved, abstract()).step == 30


def test_a_checkpoint_without_digests_was_not_finished(saved, caplog):
    (saved / "checkpoints" / "30" / "sha256.json").unlink()
    assert checkpointing.restore(saved, abstract()).step == 20
    assert "it is not finished" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "3", "\0", '{"step": 30, "files": {}}']
)
def test_damaged_digests_are_never_trusted(saved, text):
    (saved / "checkpoints" / "30" / "sha256.json").write_text(text)
    assert checkpointing.restore(saved, abstract()).step == 20


STRANGE = (".DS_Store", "._x", "Thumbs.db", ".nfs0001", "notes.txt", "@eaDir/thumb")


@pytest.mark.parametrize("place", ["", "30", "30/state"])
def test_files_of_others_are_no_damage(saved, place, caplog):
    for name in STRANGE:
        path = saved / "checkpoints" / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert checkpointing.restore(saved, abstract()).step == 30
    with open_checkpoints(saved) as checkpoints:
        checkpoints.save_last(40, state(40.0))
    assert checkpointing.restore(saved, abstract()).step == 40
    assert not caplog.text


def test_files_of_others_may_come_and_go_while_a_checkpoint_is_written(
    saved, monkeypatch
):
    real = digests._digests

    def beside_a_file_manager(checkpoint):
        (checkpoint / ".DS_Store").write_text("x")
        result = real(checkpoint)
        (checkpoint / ".DS_Store").unlink()
        return result

    monkeypatch.setattr(digests, "_digests", beside_a_file_manager)
    with open_checkpoints(saved) as checkpoints:
        checkpoints.save_last(40, state(40.0))
    assert checkpointing.restore(saved, abstract()).step == 40


@pytest.mark.parametrize(
    ("error", "times", "message"),
    [
        (FileNotFoundError(2, "No such file"), 2, ""),
        (OSError(116, "Stale file handle"), 3, ""),
        (OSError(116, "Stale file handle"), 4, "cannot be read now: Stale file handle"),
        (PermissionError(13, "Permission denied"), 4, "Permission denied.* as it is"),
    ],
)
def test_a_file_that_cannot_be_read_for_a_moment_is_read_again(
    saved, monkeypatch, error, times, message
):
    path = saved / "checkpoints" / "30" / "sha256.json"
    read, failures = type(path).read_bytes, iter(range(times))

    def read_bytes(self):
        if self == path and next(failures, None) is not None:
            raise error
        return read(self)

    monkeypatch.setattr(type(path), "read_bytes", read_bytes)
    if message:
        with pytest.raises(RunFailedError, match=message):
            checkpointing.restore(saved, abstract())
    assert checkpointing.restore(saved, abstract()).step == 30
    assert checkpointing.steps(saved) == [30, 20]


def test_a_checkpoint_that_is_deleted_meanwhile_is_not_damaged(saved, monkeypatch):
    read = digests._read

    def deleted(path):
        (saved / "checkpoints" / "30").rmtree(missing_ok=True)
        return read(path)

    monkeypatch.setattr(digests, "_read", deleted)
    restored = checkpointing.restore(saved, abstract())
    assert (restored.step, restored.damaged) == (20, ())


def test_all_checkpoints_may_be_replaced_meanwhile(saved, monkeypatch):
    listed, real = iter([[10, 9]]), checkpointing.steps
    monkeypatch.setattr(
        checkpointing, "steps", lambda workdir: next(listed, None) or real(workdir)
    )
    assert checkpointing.restore(saved, abstract()).step == 30


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_named(saved, monkeypatch):
    def load(path, _):
        path.rmtree()
        raise FileNotFoundError(path)

    monkeypatch.setattr(checkpointing.ocp, "load", load)
    with pytest.raises(RunFailedError, match="Checkpoint 30 was deleted while it was"):
        checkpointing.restore(saved, abstract())


def test_a_full_disk_does_not_end_the_run_and_loses_nothing(saved, monkeypatch, caplog):
    whole = shutil.disk_usage(saved)
    with open_checkpoints(saved) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: whole._replace(free=100))
        checkpoints.save(40, state(40.0))
        assert "no space left" in caplog.text
        with pytest.raises(RunFailedError, match="Checkpoint 40 could not be written"):
            checkpoints.save_last(40, state(40.0))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: whole)
        checkpoints.save_last(50, state(50.0))
    assert checkpointing.steps(saved) == [50, 30]


def test_writing_that_fails_does_not_end_the_run(saved, monkeypatch, caplog):
    def fail(_):
        raise OSError(28, "No space left on device")

    with open_checkpoints(saved) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(digests, "_digests", fail)
            checkpoints.save(40, state(40.0))
            assert not checkpoints.wait()
        assert "could not be written: [Errno 28]" in caplog.text
        checkpoints.save_last(50, state(50.0))
    assert checkpointing.restore(saved, abstract()).step == 50


def test_a_state_of_another_kind_is_refused(saved):
    expected = {"weights": jnp.zeros((3, 3)), "key": jax.random.key(0), "absent": None}
    place = SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(UserError, match=r"Checkpoint 30 .* holds another state"):
        checkpointing.restore(saved, sharding.abstract(expected, place))


def test_some_are_kept_for_good(tmp_path):
    workdir = epath.Path(tmp_path)
    accuracies = {10: 0.5, 20: 0.9, 30: 0.4, 40: 0.6, 50: 0.7, 60: 0.1, 70: 0.2}
    with open_checkpoints(workdir, newest=1, every_steps=30, best=2) as checkpoints:
        for step, accuracy in accuracies.items():
            checkpoints.save(step, state(float(step)), {"val_accuracy": accuracy})
    assert checkpointing.steps(workdir) == [70, 60, 50, 30, 20]


def test_the_one_before_is_there_until_the_newest_is_finished(tmp_path, monkeypatch):
    workdir = epath.Path(tmp_path)
    seen = []
    real = digests._digests

    def look(checkpoint):
        seen.append(checkpointing.steps(workdir))
        return real(checkpoint)

    monkeypatch.setattr(digests, "_digests", look)
    with open_checkpoints(workdir, newest=1) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state(float(step)))
    assert seen == [[10], [20, 10], [30, 20]]


def test_a_run_ended_in_its_first_checkpoint_has_none(saved):
    checkpointing.set_aside_unfinished_start(saved)
    (saved / "checkpoints" / "30" / "sha256.json").unlink()
    checkpointing.set_aside_unfinished_start(saved)
    assert checkpointing.steps(saved) == [30, 20]
    (saved / "checkpoints" / "20").rmtree()
    checkpointing.set_aside_unfinished_start(saved)
    assert checkpointing.restore(saved, abstract()) is None
    assert (saved / "damaged" / "30").exists()


def test_an_unfinished_checkpoint_is_not_seen(saved):
    unfinished = saved / "checkpoints" / "40.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert checkpointing.steps(saved) == [30, 20]


def test_if_all_are_damaged_it_is_an_error(saved):
    for step in (20, 30):
        damage_truncate(files(saved, step)[0])
    with pytest.raises(UserError, match=r"No checkpoint in .* is whole"):
        checkpointing.restore(saved, abstract())


def test_damaged_checkpoints_are_kept_aside(saved):
    checkpointing.set_aside(saved, (30,))
    assert checkpointing.steps(saved) == [20]
    assert (saved / "damaged" / "30" / "sha256.json").exists()
    with open_checkpoints(saved) as checkpoints:
        checkpoints.save(30, state(31.0))
    assert checkpointing.restore(saved, abstract()).step == 30
