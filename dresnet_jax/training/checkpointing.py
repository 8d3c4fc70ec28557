"""Checkpoints by orbax: the only file that imports it."""

import concurrent.futures
import contextlib
import dataclasses
import operator
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from dresnet_jax.errors import RunFailedError, UserError
from dresnet_jax.training import digests, leaves, processes

Tree = TypeVar("Tree")
Policy: TypeAlias = ocp.training.preservation_policies.PreservationPolicy


def keep(
    newest: int, every_steps: int = 0, best: int = 0, always: Sequence[int] = ()
) -> Policy:
    """Returns which checkpoints of a run are kept, as orbax takes it.

    Args:
      newest: how many of the newest, and two at least: orbax deletes an older one
        before the newest is finished.
      every_steps: those of the multiples of this step too; 0 for none.
      best: how many of those with the highest `val_accuracy` too.
      always: the steps of some that are kept too.
    """
    policies = ocp.training.preservation_policies
    result = [policies.LatestN(max(newest, 2))]
    if always:
        result.append(policies.CustomSteps(always))
    if every_steps:
        result.append(policies.EveryNSteps(every_steps))
    if best:
        result.append(
            policies.BestN(
                get_metric_fn=operator.itemgetter("val_accuracy"),
                n=best,
                keep_checkpoints_without_metrics=False,
            )
        )
    return policies.AnyPreservationPolicy(result)


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints a run writes while it trains; use as a context manager."""

    def __init__(
        self, workdir: epath.Path, policy: Policy, about: Mapping[str, Any]
    ) -> None:
        """Opens `workdir/checkpoints`, and makes it if need be.

        `about` is written into each with its state, and is of JSON's types.
        """
        self._directory = _directory(workdir)
        self._about = dict(about)
        self._checkpointer = ocp.training.Checkpointer(
            self._directory, preservation_policy=policy, cleanup_tmp_directories=True
        )
        # Orbax asks JAX whether to stop with numbers of its own, also from its threads,
        # and JAX then agrees on a call that the loop never makes: the signal is lost.
        self._checkpointer._manager.reached_preemption = lambda step: False
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._writing: concurrent.futures.Future[None] | None = None

    def __exit__(self, *_: object) -> None:
        """Waits for what is being written and closes."""
        self._pool.shutdown()
        self._checkpointer.close()

    def save(
        self, step: int, state: object, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Copies a state and writes it while the run continues.

        A checkpoint appears whole or not at all. Where one cannot be written, this is
        reported and the run continues; those before it stay. By the metrics the best
        are kept.
        """
        self.wait()
        if lacks := self._lacking_bytes(state):
            logging.error(
                "Checkpoint %d is not written: no space left in %s, %.1f MB more are "
                "needed. Earlier checkpoints are kept, and the run continues.",
                *(step, self._directory, lacks / 1e6),
            )
            return
        response = self._checkpointer.save_async(
            step,
            state,
            force=True,
            metrics=dict(metrics) if metrics else None,
            custom_metadata=self._about,
        )
        assert response is not None, "orbax was told to save"
        self._writing = self._pool.submit(self._finish, step, response)

    def wait(self) -> bool:
        """Waits for what is being written; whether it was."""
        if self._writing is None:
            return False
        writing, self._writing = self._writing, None
        # Of a full disk, a lost bucket and more, each of a type of its own.
        if failure := writing.exception():
            logging.error("A checkpoint could not be written: %s", _first_line(failure))
        return failure is None

    def save_last(
        self, step: int, state: object, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Saves as `save` does, and waits until it is written.

        Raises:
          RunFailedError: it could not be.
        """
        self.save(step, state, metrics)
        if not processes.agreed(self.wait()):
            raise RunFailedError(
                f"Checkpoint {step} could not be written to {self._directory}. Earlier "
                "checkpoints are kept; the same command resumes from them."
            )

    def _finish(self, step: int, response: ocp.AsyncResponse) -> None:
        """Waits for orbax, in a thread, and marks the checkpoint as finished."""
        response.result()
        if processes.is_first():
            digests.write(self._directory / str(step), step)

    def _lacking_bytes(self, state: object) -> int:
        """Bytes that the disk lacks, agreed; orbax reports the lack in many voices."""
        lacks = 0
        if processes.is_first() and "://" not in os.fspath(self._directory):
            needed = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(state))
            lacks = max(0, needed - shutil.disk_usage(self._directory).free)
        return processes.agreed(lacks)


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


def restore(
    workdir: epath.Path, abstract_state: Tree, only: int | None = None
) -> Restored[Tree] | None:
    """Reads the newest whole checkpoint of a run, on any devices; writes nothing.

    Args:
      workdir: the run directory.
      abstract_state: the shapes, dtypes and shardings to restore to.
      only: the step of the one to restore, and no other.

    Returns:
      What was read, or None where there is no checkpoint.

    Raises:
      UserError: there are checkpoints, but none is whole, or the state is of another
        kind than `abstract_state`.
      RunFailedError: one is there, but cannot be read now.
    """
    step, damaged = _newest_whole(workdir, only)
    if step is None:
        return None
    checkpoint = _directory(workdir) / str(step)
    try:
        state = ocp.load(checkpoint, abstract_state)
    # The files are those that were written, so it is not what was asked for.
    except Exception as error:
        if not checkpoint.exists():
            raise RunFailedError(
                f"Checkpoint {step} was deleted while it was read, by the process that "
                "trains: try again."
            ) from error
        raise UserError(
            f"Checkpoint {step} in {_directory(workdir)} is whole, but holds another "
            f"state than this run's: {_first_line(error)}"
        ) from error
    return Restored(state, step, damaged)


def _first_line(error: BaseException) -> str:
    """What an error of orbax says, without the many lines that follow."""
    return f"{str(error).splitlines()[0] if str(error) else repr(error):.300}"


def _newest_whole(
    workdir: epath.Path, only: int | None = None
) -> tuple[int | None, tuple[int, ...]]:
    """The newest checkpoint that is as it was written, and newer ones that are not.

    Process 0 alone reads every byte to check it, and alone knows the damaged ones.
    """
    result = processes.first_alone(lambda: _verified(workdir, only))
    step, damaged = result or (None, ())
    step = processes.agreed(-1 if step is None else step)
    return None if step < 0 else step, damaged


def _verified(
    workdir: epath.Path, only: int | None
) -> tuple[int | None, tuple[int, ...]]:
    candidates = steps(workdir) if only is None else [only]
    damaged: list[int] = []
    for step in candidates:
        checkpoint = _directory(workdir) / str(step)
        try:
            digests.verify(checkpoint)
        except ValueError as error:
            # It may have been deleted meanwhile, by the process that trains.
            if checkpoint.exists():
                logging.warning("Checkpoint %d is damaged: %s", step, error)
                damaged.append(step)
            continue
        except OSError as error:
            raise RunFailedError(
                f"Checkpoint {checkpoint} cannot be read now: "
                f"{error.strerror or error}. It was left as it is."
            ) from error
        if damaged:
            logging.warning("Going back to checkpoint %d.", step)
        return step, tuple(damaged)
    if damaged:
        raise UserError(
            f"No checkpoint in {_directory(workdir)} is whole. They were left as they "
            "are: bring their files back from a copy, or train in another workdir."
        )
    if only is None and candidates and steps(workdir):
        # All that were there at first were deleted meanwhile.
        return _verified(workdir, None)
    return None, ()


def newest(workdir: epath.Path) -> tuple[int, dict[str, Any]] | None:
    """Finds the step of the newest whole checkpoint, and what is written with it.

    Raises:
      UserError: there are checkpoints, but none is whole.
    """
    step, _ = _newest_whole(workdir)
    return None if step is None else (step, about(workdir, step))


def about(workdir: epath.Path, step: int) -> dict[str, Any]:
    """Returns what was written into a checkpoint with its state."""
    return dict(ocp.metadata(_directory(workdir) / str(step)).custom_metadata or {})


def discard(workdir: epath.Path, unwanted: Sequence[int]) -> None:
    """Deletes checkpoints, the newest first, so that none is left after a gap."""
    for step in sorted(unwanted, reverse=True):
        (_directory(workdir) / str(step)).rmtree()


def weight_shapes(workdir: epath.Path) -> tuple[dict[str, Any], int]:
    """Reads the shapes of the weights in a run's newest checkpoint, and its step.

    By path, such as params/stem/conv/kernel; the parameters are the averaged ones where
    there are some.

    Raises:
      UserError: no checkpoint is whole.
    """
    step, _ = _newest_whole(workdir)
    assert step is not None, "there is a checkpoint"
    tree = ocp.metadata(_directory(workdir) / str(step)).metadata
    weights = {"params": tree[_weights(tree)], "batch_stats": tree["batch_stats"]}
    return leaves.by_name(weights), step


def load_weights(
    workdir: epath.Path, step: int, places: Mapping[str, jax.sharding.Sharding]
) -> dict[str, jax.Array]:
    """Reads some leaves of `weight_shapes` to where they shall lie, by their paths."""
    checkpoint = _directory(workdir) / str(step)
    tree = ocp.metadata(checkpoint).metadata
    # The averaged parameters have another name in the checkpoint.
    names = {re.sub("^params/", f"{_weights(tree)}/", name): name for name in places}

    def abstract(name: str, leaf: Any) -> Any:
        if name not in names:
            return ocp.PLACEHOLDER
        place = places[names[name]]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    result = leaves.by_name(ocp.load(checkpoint, leaves.map_by_name(abstract, tree)))
    return {names[name]: leaf for name, leaf in result.items() if name in names}


def _weights(tree: Mapping[str, Any]) -> str:
    """Which part of a state are its weights: the averaged ones where there are."""
    return "ema_params" if tree["ema_params"] else "params"


def set_aside_unfinished_start(workdir: epath.Path) -> None:
    """Sets the only checkpoint aside if a run was ended while it wrote its first."""
    there = steps(workdir)
    if len(there) != 1 or (_directory(workdir) / str(there[0]) / digests.NAME).exists():
        return
    logging.warning("The run was ended while it wrote its first checkpoint.")
    set_aside(workdir, there)


def set_aside(workdir: epath.Path, damaged: Sequence[int]) -> None:
    """Moves damaged checkpoints to `workdir/damaged`, out of the way of new ones."""
    for step in damaged:
        target = workdir / "damaged" / str(step)
        if target.exists():
            target.rmtree()
        target.parent.mkdir(exist_ok=True)
        (_directory(workdir) / str(step)).rename(target)
        logging.warning("The damaged checkpoint was moved to %s.", target)


def steps(workdir: epath.Path) -> list[int]:
    """Returns the steps of a run's checkpoints, the newest first."""
    directory = _directory(workdir)
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    # What else lies there is none of ours.
    return sorted(
        (int(x) for x in names if re.fullmatch("[0-9]{1,18}", x)), reverse=True
    )


def _directory(workdir: epath.Path) -> epath.Path:
    # Orbax takes absolute paths only; that of a bucket is one already.
    absolute = workdir if workdir.is_absolute() else workdir.resolve()
    return absolute / "checkpoints"
