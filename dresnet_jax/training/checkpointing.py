"""Checkpoints by orbax: the only file that imports it."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Generic, TypeVar

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from dresnet_jax.errors import RunFailedError, UserError

Tree = TypeVar("Tree")

# Written into each finished checkpoint: the SHA-256 of its every file. Orbax itself
# notices some damage, but not a flipped byte, and reports it through many threads.
_DIGESTS = "sha256.json"


class Checkpoints:
    """The checkpoints a run writes, the newest kept; use as a context manager."""

    def __init__(self, workdir: epath.Path, keep: int) -> None:
        """Opens `workdir/checkpoints`, and makes it if need be.

        Args:
          workdir: the run directory.
          keep: how many of the newest checkpoints are kept.
        """
        self._directory = _directory(workdir)
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        """Nothing but the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for what is being written and closes."""
        self._checkpointer.close()

    def save(self, step: int, state: object) -> None:
        """Writes a checkpoint; it appears whole or not at all.

        Raises:
          RunFailedError: the disk has no room for it.
        """
        _require_room(self._directory, state)
        self._checkpointer.save(step, state, force=True)
        checkpoint = self._directory / str(step)
        partial = checkpoint / (_DIGESTS + ".partial")
        partial.write_text(json.dumps(_digests(checkpoint)))
        partial.replace(checkpoint / _DIGESTS)


@dataclasses.dataclass(frozen=True)
class Restored(Generic[Tree]):
    """A checkpoint that was read.

    Attributes:
      state: with the structure, shapes and shardings that were asked for.
      step: of the checkpoint.
      damaged: the steps of newer checkpoints that could not be read.
    """

    state: Tree
    step: int
    damaged: tuple[int, ...]


def restore(workdir: epath.Path, abstract_state: Tree) -> Restored[Tree] | None:
    """Reads the newest checkpoint of a run that can be read, and writes nothing.

    Args:
      workdir: the run directory.
      abstract_state: the shapes, dtypes and shardings that are wanted.

    Returns:
      What was read, or None where there is no checkpoint.

    Raises:
      UserError: there are checkpoints, but none can be read.
    """
    damaged: list[int] = []
    for step in steps(workdir):
        checkpoint = _directory(workdir) / str(step)
        try:
            _verify(checkpoint)
            state = ocp.load(checkpoint, abstract_state)
        # Orbax and TensorStore raise errors of many types for damaged files.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            logging.warning("Checkpoint %d cannot be read: %.200s", step, reason)
            damaged.append(step)
            continue
        if damaged:
            logging.warning("Going back to checkpoint %d.", step)
        return Restored(state, step, tuple(damaged))
    if damaged:
        raise UserError(
            f"No checkpoint in {_directory(workdir)} can be read: train anew with "
            "--overwrite, or in another workdir."
        )
    return None


def set_aside(workdir: epath.Path, damaged: tuple[int, ...]) -> None:
    """Moves damaged checkpoints to `workdir/damaged`, out of the way of new ones."""
    for step in damaged:
        target = workdir / "damaged" / str(step)
        if target.exists():
            target.rmtree()
        target.parent.mkdir(exist_ok=True)
        (_directory(workdir) / str(step)).rename(target)
        logging.warning("The damaged checkpoint was moved to %s.", target)


def steps(workdir: epath.Path) -> list[int]:
    """The steps of a run's finished checkpoints, the newest first."""
    directory = _directory(workdir)
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _require_room(directory: epath.Path, state: object) -> None:
    """Looks before orbax writes, whose threads report a full disk in many voices."""
    if "://" in os.fspath(directory):
        return
    needed = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RunFailedError(
            f"No space left for a checkpoint in {directory}: {needed / 1e6:.1f} MB are "
            f"needed, {free / 1e6:.1f} MB are free. Earlier checkpoints are kept; the "
            "same command goes on once there is room."
        )


def _verify(checkpoint: epath.Path) -> None:
    """Raises a ValueError that names the first file that is not as it was written.

    A checkpoint whose writer was killed before it wrote the digests is left to orbax.
    """
    path = checkpoint / _DIGESTS
    if not path.exists():
        return
    try:
        expected = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{_DIGESTS} is damaged") from error
    found = _digests(checkpoint)
    for name, digest in expected.items():
        if name not in found:
            raise ValueError(f"{name} is missing")
        if found[name] != digest:
            raise ValueError(f"{name} has changed since it was written")


def _digests(checkpoint: epath.Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint, by its path inside it."""
    return {
        str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _files(checkpoint)
        if not path.name.startswith(_DIGESTS)
    }


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _directory(workdir: epath.Path) -> epath.Path:
    # Orbax takes absolute paths only; that of a bucket is one already.
    absolute = workdir if workdir.is_absolute() else workdir.resolve()
    return absolute / "checkpoints"
