"""Lines of a run's log are whole; what cannot be written or read stops nothing."""

import json
import logging

import pytest
from etils import epath

from dresnet_jax.training import metrics, run_log
from tests.conftest import json_lines


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path)


def opened(directory, start=0):
    return run_log.Log(directory, start, num_steps=9)


def test_a_run_that_resumes_drops_the_lines_after_its_checkpoint(directory):
    lines = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    (directory / "metrics.jsonl").write_text(json_lines(lines) + '{"step": 4, "lo')
    with opened(directory, 2) as log:
        log.write(3, {"loss": 0.5})
    assert metrics.read(directory) == [*lines[:2], {"step": 3, "loss": 0.5}]


def test_a_run_from_scratch_drops_every_line(directory):
    for _ in range(2):
        with opened(directory) as log:
            log.write_gates(0, {3: {1: 0.5}})
            log.write(1, {"loss": 0.5})
    lines = [{"step": 0, "gates": {"3": {"1": 0.5}}}, {"step": 1, "loss": 0.5}]
    assert metrics.read(directory) == lines


@pytest.mark.parametrize(
    "line", [b"garbage", b"[]", b"{}", b'{"step": ""}', b"\xff", b"\0" * 512]
)
def test_a_damaged_line_is_set_aside(directory, line, caplog):
    (directory / "metrics.jsonl").write_bytes(
        b'{"step": 1}\n' + line + b'\n{"step": 2}\n'
    )
    assert metrics.read(directory) == [{"step": 1}, {"step": 2}]
    assert "metrics.jsonl, line 2, is damaged and left out" in caplog.text
    with opened(directory, 2) as log:
        log.write(3, {})
    assert metrics.read_all(directory) == ([{"step": i} for i in (1, 2, 3)], {})
    aside = (directory / "damaged" / "metrics.jsonl").read_bytes()
    assert aside.decode() == line.decode(errors="replace") + "\n"


class Disk:
    """Takes some characters in all, and then is full, until there is room."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def write(self, text):
        part = text[: self.left[0]]
        self.file.write(part)
        self.left[0] -= len(part)
        if len(part) < len(text):
            self.file.flush()
            raise OSError(28, "No space left on device")

    def flush(self):
        self.file.flush()

    def close(self):
        self.file.close()


def test_lines_that_cannot_be_written_are_left_out_and_said_once(
    directory, monkeypatch, caplog
):
    left, real = [40], type(directory).open

    def opened_there(self, mode="r", **kwargs):
        file = real(self, mode, **kwargs)
        return Disk(file, left) if mode == "a" else file

    monkeypatch.setattr(type(directory), "open", opened_there)
    with opened(directory) as log:
        for step in range(6):
            if step == 4:
                left[0] = 1000
            log.write(step, {"loss": 0.5})
    # Each line has 26 characters: the second breaks off, and none is half written.
    assert [line["step"] for line in metrics.read(directory)] == [0, 4, 5]
    text = (directory / "metrics.jsonl").read_text()
    assert all(json.loads(line) for line in text.splitlines())
    assert caplog.text.count("metrics.jsonl cannot be written: No space left") == 1


@pytest.mark.parametrize("method", ["write_event", "flush", "close", "__init__"])
def test_tensorboard_that_cannot_be_written_stops_nothing(
    directory, monkeypatch, caplog, method
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_log, "_BOARD_SECONDS", 0.0)
    monkeypatch.setattr(run_log.EventsWriter, method, full)
    with opened(directory) as log:
        for step in range(50):
            log.write(step, {"loss": 0.5})
    assert len(metrics.read(directory)) == 50
    assert caplog.text.count("tensorboard cannot be written: No space left") == 1


def test_a_directory_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    # No directory, for root can write into any.
    (tmp_path / "file").write_text("")
    with opened(epath.Path(tmp_path / "file")) as log:
        log.write(1, {"loss": 0.5})
    for what in ("metrics.jsonl", "tensorboard"):
        assert caplog.text.count(f"{what} cannot be written: Not a directory") == 1
