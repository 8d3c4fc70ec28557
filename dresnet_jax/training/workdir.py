"""The run directory: whose run it holds, which files are its own, and its records."""

import contextlib
import dataclasses
import fcntl
import fnmatch
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from dresnet_jax.data import lookup
from dresnet_jax.data.catalog import Dataset
from dresnet_jax.errors import RunFailedError, UserError
from dresnet_jax.training import json_files, run_config, run_log

_DATASET = "dataset.json"
_HISTORY = "history.jsonl"
# Results of events, as earlier versions called them.
_NEW_WORDS = {"taken back": "reverted", "refused": "rejected"}

# Files that file managers and systems leave.
_STRAY = (".DS_Store", "._*", ".nfs*", "Thumbs.db", "desktop.ini")

# By patterns of names: None for a file, what a directory holds, or this for anything.
_ANYTHING: Any = "anything"
_RUN: dict[str, Any] = {
    **dict.fromkeys(("config.json", "metrics.jsonl", "history.jsonl", "log.txt")),
    **dict.fromkeys(("report.json", "failed.json", "dataset.json", "*.partial")),
    **dict.fromkeys(("curves.png", "gates.png", "gate_functions.png", "growth.png")),
    **dict.fromkeys(("evaluation_*.json", "early_exit.json", "early_exit.png")),
    "checkpoints": {"[0-9]*": _ANYTHING},
    "damaged": {"[0-9]*": _ANYTHING, "metrics.jsonl": None},
    "tensorboard": {"events.out.tfevents.*": None},
    "profiles": {"plugins": _ANYTHING, "memory_*.prof": None},
}
_COMPARISON = {
    **dict.fromkeys(("plan.json", "report.html", "report.md", "runs.csv")),
    **dict.fromkeys(("accuracy.png", "splits.png", "drift.png")),
    "runs": {"*": {"[0-9]*": _RUN}},
    # Of earlier versions.
    "compiled": _ANYTHING,
}
_EVOLUTION = {
    **dict.fromkeys(("evaluations.jsonl", "evolution.png")),
    "members": {"[0-9]*": _RUN},
}
_KNOWN = _RUN | _COMPARISON | _EVOLUTION


@contextlib.contextmanager
def claim(
    workdir: epath.Path, config: ml_collections.ConfigDict, *, overwrite: bool
) -> Iterator[None]:
    """Makes a directory ready for a run of a config, and keeps other processes out.

    It is made if it does not exist. With `overwrite` the run that it holds is deleted,
    but never what no run writes.

    Raises:
      UserError: it is no directory or cannot be written, another process trains in it,
        it holds a run of another config or on other data, or it holds something that is
        no run. What it holds has not changed then.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file, not a directory.")
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(workdir))
            with tempfile.TemporaryFile(dir=workdir):
                pass
            dataset = lookup.from_config(config.data) if "data" in config else None
            _check(workdir, config, overwrite)
            if dataset and not overwrite:
                _require_dataset(workdir, dataset)
            if overwrite:
                _remove(workdir)
            if dataset:
                json_files.write_json(workdir / _DATASET, dataclasses.asdict(dataset))
            json_files.write_json(workdir / run_config.CONFIG, run_config.plain(config))
        except OSError as error:
            raise UserError(
                f"workdir {workdir} cannot be written: {error.strerror or error}."
            ) from error
        yield


def _check(
    workdir: epath.Path, config: ml_collections.ConfigDict, overwrite: bool
) -> None:
    if not _is_run(workdir):
        if any(not is_stray(path) for path in workdir.iterdir()):
            raise UserError(
                f"workdir {workdir} is not empty and holds no run: choose another one."
            )
        return
    if overwrite:
        if others := list(strangers(workdir)):
            names = ", ".join(map(repr, others[:5]))
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            raise UserError(
                f"workdir {workdir} holds what no run writes, and --overwrite does not "
                f"delete: {names}{more}. Move it away, or choose another workdir."
            )
        return
    run_config.require_config(workdir, config)


def _is_run(workdir: epath.Path) -> bool:
    """Whether a config is one of ours, or was before it was damaged."""
    if not (workdir / run_config.CONFIG).exists():
        return False
    try:
        config = run_config.raw(workdir)
    except UserError:
        return True
    of_run = config.get("base", config)
    return isinstance(of_run, dict) and {"data", "model", "train"} <= of_run.keys()


class LostWorkdirError(RunFailedError):
    """The run directory is not the one any more that this process claimed."""


# Device and inode of the local directories that this process has claimed.
_held: dict[str, tuple[int, int]] = {}


def require_held(workdir: epath.Path) -> None:
    """Checks that a directory that this process claimed is still the same one.

    Raises:
      LostWorkdirError: it was removed, renamed or replaced.
    """
    path = os.fspath(workdir)
    if path not in _held:
        return
    try:
        result = Path(path).stat()
    except OSError as error:
        raise LostWorkdirError(
            f"workdir {workdir} is gone: {error.strerror}. This process stops."
        ) from error
    if (result.st_dev, result.st_ino) != _held[path]:
        raise LostWorkdirError(
            f"workdir {workdir} was replaced by another directory while this process "
            "trained in it. This process stops, and writes nothing there."
        )


@contextlib.contextmanager
def _locked(workdir: epath.Path) -> Iterator[None]:
    """Holds a lock on a local directory, which ends with the process at the latest."""
    path = os.fspath(workdir)
    if "://" in path:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"workdir {workdir} is in use: another process trains in it."
            ) from None
        own = os.fstat(descriptor)
        _held[path] = own.st_dev, own.st_ino
        yield
    finally:
        _held.pop(path, None)
        os.close(descriptor)


def read_dataset(workdir: epath.Path) -> Dataset | None:
    """Reads what a run was trained on; None for one of earlier versions.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / _DATASET
    if not path.exists():
        return None
    with json_files.reading(path):
        result = json.loads(path.read_text())
        for name in ("class_names", "mean", "std"):
            result[name] = tuple(result[name])
        return Dataset(**result)


def _require_dataset(workdir: epath.Path, dataset: Dataset) -> None:
    """Checks that the run in a directory was trained on a dataset."""
    there = read_dataset(workdir)
    if there is None or there == dataset:
        return
    names = [field.name for field in dataclasses.fields(Dataset)]
    different = [x for x in names if getattr(there, x) != getattr(dataset, x)]
    raise UserError(
        f"workdir {workdir} holds a run on another {there.name}: "
        f"{', '.join(different)} differ. Choose another workdir, or say by "
        "--config.data.data_dir where the data of that run is."
    )


def read_history(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns the events by which a run's network grew; none where it did not.

    Raises:
      UserError: the file is damaged.
    """
    return with_new_words(json_files.read_lines(workdir / _HISTORY))


def with_new_words(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Replaces what earlier versions wrote of the result of an event."""
    return [
        {**entry, "result": _NEW_WORDS.get(entry["result"], entry["result"])}
        for entry in history
    ]


def write_history(workdir: epath.Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Writes `history.jsonl`, which is there whole or not at all."""
    json_files.write_lines(workdir / _HISTORY, history)


def strangers(directory: epath.Path) -> Iterator[str]:
    """Returns what is in a directory and none of our commands writes there.

    Links are not followed. What file managers leave does not count.
    """
    return _strangers(directory, dict.fromkeys(run_log.WRITERS) | _KNOWN)


def _strangers(directory: epath.Path, known: Any) -> Iterator[str]:
    for path in sorted(directory.iterdir()):
        if is_stray(path):
            continue
        fits = [of for name, of in known.items() if fnmatch.fnmatch(path.name, name)]
        is_directory = path.is_dir() and not _is_link(path)
        if not fits or (is_directory and fits[0] is None):
            yield f"{path.name}/" if is_directory else path.name
        elif is_directory and fits[0] != _ANYTHING:
            yield from (f"{path.name}/{name}" for name in _strangers(path, fits[0]))
        elif fits[0] is not None and not is_directory and not _is_link(path):
            yield path.name


def _remove(directory: epath.Path) -> None:
    """Deletes what a directory holds but the directory; links, not where they lead."""
    for path in directory.iterdir():
        if is_stray(path):
            continue
        if path.is_dir() and not _is_link(path):
            path.rmtree()
        else:
            path.unlink()


def is_stray(path: epath.Path) -> bool:
    """Checks whether a file is one that file managers and systems leave."""
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in _STRAY)


def _is_link(path: epath.Path) -> bool:
    # Nothing in a bucket is one.
    return Path(os.fspath(path)).is_symlink()
