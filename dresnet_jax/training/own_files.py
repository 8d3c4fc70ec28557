"""Which files of a directory are those of a run, a comparison or an evolution."""

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from dresnet_jax.training import run_log

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


def remove(directory: epath.Path) -> None:
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
