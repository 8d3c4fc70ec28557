"""The loop compiles once, writes each line once, and stops where it must."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from dresnet_jax.errors import UserError
from dresnet_jax.training import (
    checkpointing,
    evaluation,
    experiment,
    late_report,
    loop,
    metrics,
    run_config,
    watching,
    workdir,
)
from tests.conftest import small


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path / "run")


def train(config, directory):
    exp = experiment.build(config)
    with workdir.claim(directory, config, overwrite=False):
        return loop.run(exp, directory)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of `small_config`, trained once and never changed, and its report."""
    directory = epath.Path(tmp_path_factory.mktemp("finished") / "run")
    return directory, train(small(), directory)


@pytest.fixture
def trained(finished, directory):
    """A copy of that run in `directory`, and its report."""
    whole, report = finished
    shutil.copytree(whole, directory)
    return report


def test_a_run_leaves_what_it_promises(finished):
    directory, report = finished
    assert report == json.loads(
        (directory / "report.json").read_text(), object_hook=_int_keys
    )
    assert report["steps"] == 12
    lines = metrics.read(directory)
    trained = [line["step"] for line in lines if "train_loss" in line]
    validated = [line["step"] for line in lines if "val_loss" in line]
    gates = [line["step"] for line in lines if "gates" in line]
    assert (trained, validated, gates) == ([5, 10, 12], [12], [0, 12])
    assert checkpointing.steps(directory) == [12, 8, 4]
    assert report["gates"][3].keys() == {1}
    assert report["gates"][4].keys() == {1, 2}


def _int_keys(tree):
    return {int(k) if k.isdigit() else k: v for k, v in tree.items()}


@pytest.mark.parametrize(
    ("bound", "multiplier", "warns"),
    [
        (1.0, None, True),
        (0.0, None, False),
        pytest.param(0.01, 1e-3, True, marks=pytest.mark.slow),
        pytest.param(0.01, 300.0, False, marks=pytest.mark.slow),
        pytest.param(0.01, 0.0, False, marks=pytest.mark.slow),
    ],
)
def test_gates_that_hardly_move_raise_an_alarm(
    small_config, directory, caplog, monkeypatch, bound, multiplier, warns
):
    monkeypatch.setattr(loop, "_STILL_GATES", bound)
    if multiplier is not None:
        small_config.optimizer.gate_multiplier = multiplier
    train(small_config, directory)
    assert ("Gates hardly move" in caplog.text) == warns
    (drift,) = [
        line["gate_drift"] for line in metrics.read(directory) if "gate_drift" in line
    ]
    assert drift >= 0
    assert (drift < bound) == (warns or multiplier == 0)


@pytest.mark.parametrize(
    ("group", "fields"),
    [
        pytest.param("train", {"steps_per_call": 3}, marks=pytest.mark.slow),
        ("data", {"mode": "streaming"}),
        pytest.param(
            "data",
            {"mode": "streaming", "num_threads": 1, "num_workers": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_input_pipelines_and_calls_change_nothing(
    small_config, finished, directory, group, fields
):
    whole, plain = finished
    small_config[group].update(fields)
    other = train(small_config, directory)
    np.testing.assert_allclose(other["test_loss"], plain["test_loss"], rtol=1e-4)
    lines = [line for line in metrics.read(directory) if "train_loss" in line]
    expected = [line for line in metrics.read(whole) if "train_loss" in line]
    for line, plain_line in zip(lines, expected, strict=True):
        assert line["step"] == plain_line["step"]
        np.testing.assert_allclose(
            line["train_loss"], plain_line["train_loss"], rtol=1e-4
        )
        assert 0 <= line["data_wait"] < 1
        assert 0 < line["images_per_second"] < 1e6


def test_more_steps_a_call_than_a_log_line_are_refused(small_config):
    small_config.train.steps_per_call = 6
    with pytest.raises(UserError, match="must not be above train"):
        experiment.build(small_config)


def test_a_run_resumes_with_another_input_pipeline(small_config, trained, directory):
    small_config.data.mode = "streaming"
    small_config.data.num_threads = 2
    again = train(small_config, directory)
    assert again["test_loss"] == trained["test_loss"]
    assert again["data"].startswith("streaming, 2 threads")
    assert run_config.read_config(directory).data.mode == "streaming"


def test_tensorboard_has_the_same_scalars(finished):
    directory, _ = finished
    (path,) = (directory / "tensorboard").iterdir()
    result = {}
    for event in _events(path.read_bytes()):
        for value in event.summary.value:
            result[event.step, value.tag] = value.simple_value
    for line in metrics.read(directory):
        for name in line.keys() & {"train_loss", "val_accuracy", "learning_rate"}:
            np.testing.assert_allclose(
                result[line["step"], name], line[name], rtol=1e-6
            )
    assert (12, "gates/4_from_2") in result


def _events(data):
    """Records: length (8 bytes), checksum (4), the event, checksum (4)."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_the_step_compiles_once_and_evaluation_comes_every_so_many_epochs(
    small_config, directory
):
    small_config.data.train_examples = 256  # Three epochs of four steps.
    small_config.train.eval_every_epochs = 2
    compiled = []

    def listen(event, _, **fields):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fields.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(small_config, directory)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    names = [str(name) for name in compiled]
    assert sum("train_step" in name for name in names) == 1, names
    assert sum("eval_step" in name for name in names) == 1, names
    lines = metrics.read(directory)
    assert [line["step"] for line in lines if "val_loss" in line] == [8, 12]


@pytest.mark.parametrize(("gate", "dies"), [("gauss", True), ("sigmoid", False)])
def test_gates_that_have_died_raise_an_alarm(
    small_config, directory, caplog, gate, dies
):
    small_config.model.connections.update(gate=gate, initial_gate=1e-4)
    small_config.train.num_steps = 2
    train(small_config, directory)
    assert ("Gates have died: after step 2, F(w) is below 0.001" in caplog.text) == dies
    assert ("in 3 of 3" in caplog.text) == dies
    (line,) = [line for line in metrics.read(directory) if "val_loss" in line]
    assert ("gate_sharpness" in line) == dies


def test_a_finished_run_only_reports_again(small_config, trained, directory):
    lines = (directory / "metrics.jsonl").read_bytes()
    again = train(small_config, directory)
    assert again == {**trained, "workdir": str(directory)}
    assert (directory / "metrics.jsonl").read_bytes() == lines


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_stops_where_its_directory_becomes_another(
    small_config, directory, replaced
):
    class Moves(watching.Watch):
        def after(self, call):
            super().after(call)
            if call.start == 2:
                directory.rename(directory.with_name("moved"))
                if replaced:
                    directory.mkdir()

    with (
        workdir.claim(directory, small_config, overwrite=False),
        pytest.raises(workdir.LostWorkdirError, match="This process stops"),
    ):
        loop.run(experiment.build(small_config), directory, Moves(directory))
    assert directory.exists() == replaced
    assert not replaced or not list(directory.iterdir())


def test_a_run_of_a_billion_steps_starts_at_once(small_config):
    small_config.train.num_steps = 10**9
    calls = experiment.build(small_config).calls(7)
    assert len(calls) == 10**9 - 7
    assert calls[0] == calls[:1][0] == (7, 1)
    assert calls[-1] == (10**9 - 1, 1)
    small_config.train.num_steps = 2**31
    with pytest.raises(UserError, match=r"must be in \[1, 2147483647\]"):
        experiment.build(small_config)


@pytest.mark.usefixtures("trained")
def test_a_checkpoint_of_another_run_is_refused(small_config, directory):
    """Put there by a person, or by another process."""
    other = directory.with_name("other")
    (directory / "report.json").unlink()
    small_config.seed = 1
    with workdir.claim(other, small_config, overwrite=False):
        pass
    (directory / "checkpoints").rename(other / "checkpoints")
    message = r"checkpoint of another run: seed is 0 there and 1 in config.json\. Put"
    with pytest.raises(UserError, match=message):
        train(small_config, other)
    with pytest.raises(UserError, match=message):
        evaluation.open_run(other)


def test_a_run_goes_back_from_a_checkpoint_that_is_not_finite(
    small_config, trained, directory
):
    """As one that an earlier version wrote."""
    exp = experiment.build(small_config)
    state = checkpointing.restore(directory, exp.create_state(abstract=True), 8).state
    poisoned = state.replace(
        step=state.step + 1,
        batch_stats=jax.tree.map(lambda x: x * np.nan, state.batch_stats),
    )
    (directory / "checkpoints" / "12").rmtree()
    with checkpointing.Checkpoints(directory, checkpointing.keep(3), {}) as checkpoints:
        checkpoints.save_last(9, poisoned)
    assert train(small_config, directory)["test_loss"] == trained["test_loss"]
    assert (directory / "damaged" / "9").exists()


def test_a_loss_that_is_not_finite_stops_at_its_step(small_config, directory):
    small_config.optimizer.learning_rate = 1e30
    small_config.train.checkpoint_every_steps = 1
    with pytest.raises(
        late_report.NonFiniteLossError, match=r"At step (\d+) "
    ) as error:
        train(small_config, directory)
    step = int(str(error.value).split()[2])
    newest = checkpointing.steps(directory)[0]
    assert newest < step
    exp = experiment.build(small_config)
    kept = checkpointing.restore(directory, exp.create_state(abstract=True)).state
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.params))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_steps": 1},
        {"num_steps": 3, "checkpoint_every_steps": 1},
    ],
)
def test_a_step_to_what_is_not_finite_is_not_saved(small_config, directory, fields):
    """The loss before it was finite; with one step no other follows that is not."""
    small_config.optimizer.update(learning_rate=1e39, warmup_fraction=0.0)
    small_config.train.update(fields)
    with pytest.raises(late_report.NonFiniteLossError, match=r"After step 1 param"):
        train(small_config, directory)
    assert checkpointing.steps(directory) == []
    assert not (directory / "report.json").exists()


def test_steps_to_what_is_not_finite_are_counted_as_skipped(
    small_config, directory, caplog
):
    small_config.optimizer.update(learning_rate=1e39, warmup_fraction=0.0)
    small_config.train.update(num_steps=30, on_non_finite="skip")
    with pytest.raises(late_report.NonFiniteLossError, match=r"in 10 batches in a row"):
        train(small_config, directory)
    assert "but what they lead to is not finite: the batch is skipped" in caplog.text


def test_a_run_reports_on_its_best_step(tiny_images_config, directory):
    config = tiny_images_config
    config.train.num_steps = 20
    config.train.update(keep_best=1, keep_checkpoints=1, report_on="best")
    report = train(config, directory)
    lines = metrics.read(directory)
    result = {x["step"]: x["val_accuracy"] for x in lines if "val_accuracy" in x}
    best = report["reported_step"]
    assert list(result) == [4, 8, 12, 16, 20]
    assert result[best] == report["val_accuracy"] == max(result.values())
    assert checkpointing.steps(directory) == sorted({best, 16, 20}, reverse=True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_steps": 7, "num_epochs": 3}, 7),
        ({"num_steps": None, "num_epochs": 3}, 3 * math.floor(1257 / 64)),
    ],
)
def test_the_length_is_steps_or_epochs(small_config, fields, expected):
    small_config.train.update(fields)
    assert experiment.build(small_config).num_steps == expected


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_steps_move_no_array_between_host_and_devices_in_secret(small_config, mode):
    small_config.data.mode = mode
    exp = experiment.build(small_config)
    data = exp.open_data()
    state = exp.create_state()
    step = exp.compile_train_step()
    calls = exp.calls(0)[:3]
    given = [inputs for inputs, _ in exp.inputs.data(data, 0, calls)]
    with jax.transfer_guard("disallow"):
        for inputs in given:
            state, result = step(state, inputs)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            step(state, jax.tree.map(np.asarray, inputs))
    assert np.isfinite(jax.device_get(result.loss)).all()
