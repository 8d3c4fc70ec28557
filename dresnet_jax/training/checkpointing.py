"""Checkpoints by orbax: the only file that imports it."""

import dataclasses
import shutil
from typing import Generic, TypeVar

from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from dresnet_jax.errors import UserError

Tree = TypeVar("Tree")


class Checkpoints:
    """The checkpoints a run writes, the newest kept; use as a context manager."""

    def __init__(self, workdir: epath.Path, keep: int) -> None:
        """Opens `workdir/checkpoints`, and makes it if need be.

        Args:
          workdir: the run directory.
          keep: how many of the newest checkpoints are kept.
        """
        self._checkpointer = ocp.training.Checkpointer(
            _directory(workdir),
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
        """Writes a checkpoint; it appears whole or not at all."""
        self._checkpointer.save(step, state, force=True)


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
        try:
            state = ocp.load(_directory(workdir) / str(step), abstract_state)
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
        raise UserError(f"No checkpoint in {_directory(workdir)} can be read.")
    return None


def set_aside(workdir: epath.Path, damaged: tuple[int, ...]) -> None:
    """Moves damaged checkpoints to `workdir/damaged`, out of the way of new ones."""
    for step in damaged:
        target = workdir / "damaged" / str(step)
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(exist_ok=True)
        (_directory(workdir) / str(step)).rename(target)
        logging.warning("The damaged checkpoint was moved to %s.", target)


def steps(workdir: epath.Path) -> list[int]:
    """The steps of a run's finished checkpoints, the newest first."""
    directory = _directory(workdir)
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _directory(workdir: epath.Path) -> epath.Path:
    return workdir / "checkpoints"
