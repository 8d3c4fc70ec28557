"""Classifies images with the newest checkpoint of a run.

    python -m dresnet_jax.predict --workdir=runs/digits image.png photos/
    ls photos/*.png | python -m dresnet_jax.predict --workdir=runs/digits -
    python -m dresnet_jax.predict --exported=exported image.png
    python -m dresnet_jax.predict --workdir=runs/exits --early_exit photos/

--exported takes what dresnet_jax.export wrote in the place of a run.

A network with exits answers early with --early_exit, by the thresholds that evaluate
fitted, or with --within_ms, at the deepest exit that this machine reaches in so many
milliseconds, measured for one image first.

Takes files, directories, whose images are found at any depth, and - for a list of files
on standard input. Prints the most probable classes of each. An image that cannot be
read is named, and the others are still classified; the exit code is then 1.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from dresnet_jax import cli
from dresnet_jax.analysis import early_exit_report
from dresnet_jax.analysis.early_exit import EarlyExit, by_threshold
from dresnet_jax.data import images
from dresnet_jax.data.views import View
from dresnet_jax.errors import RunFailedError, UserError
from dresnet_jax.structure import exported
from dresnet_jax.training import evaluation

_EXPORTED = flags.DEFINE_string(
    "exported", None, "Directory that dresnet_jax.export wrote."
)
_TOP = flags.DEFINE_integer("top", 3, "Classes named for each image.", lower_bound=1)

_EARLY_EXIT = flags.DEFINE_bool(
    "early_exit", False, "Answer at the first exit that is sure enough."
)
_WITHIN_MS = flags.DEFINE_float(
    "within_ms", None, "Milliseconds for one image: answer at the deepest exit in time."
)

# Images that an exported network is given at once.
_BATCH = 128


def main(*names: str) -> None:
    """Reads, classifies, prints."""
    files = list(_files(names))
    if not files:
        raise UserError("No image is named on standard input.")
    network = _network()
    classes = network.class_names
    unreadable: list[dict[str, str]] = []
    predictions: list[dict[str, Any]] = []
    readable = _readable(files, network.view, unreadable)
    while batch := list(itertools.islice(readable, network.batch_size)):
        paths, pixels = zip(*batch, strict=True)
        for path, (row, depth) in zip(paths, network.answers(pixels), strict=True):
            top = [
                {
                    "class": classes[i],
                    "label": int(i),
                    "probability": float(row[i]),
                }
                for i in np.argsort(-row, kind="stable")[: _TOP.value]
            ]
            predictions.append({"image": path, "top": top} | depth)
            cells = [f"{x['class']} {x['probability']:.3f}" for x in top]
            cells += [f"behind block {n}" for n in depth.values()]
            print(f"{path}: {', '.join(cells)}", flush=True)
    cli.finish(
        {
            **network.about,
            "predictions": predictions,
            "unreadable": unreadable,
        }
    )
    if unreadable:
        raise RunFailedError(f"{len(unreadable)} of {len(files)} cannot be read.")


# Probabilities [classes], and {"depth": blocks passed} where exits may answer.
_Answer = tuple[np.ndarray, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class _Network:
    """What answers the pixels of at most `batch_size` images, one answer each."""

    answers: Callable[[Sequence[np.ndarray]], Iterable[_Answer]]
    batch_size: int
    view: View
    class_names: Sequence[str]
    about: dict[str, Any]


def _network() -> _Network:
    """That of the flags."""
    early = _EARLY_EXIT.value or _WITHIN_MS.value is not None
    if _EARLY_EXIT.value and _WITHIN_MS.value is not None:
        raise UserError("Give one of --early_exit and --within_ms.")
    if _EXPORTED.value is not None:
        if early:
            raise UserError("An exported network has one exit: give --workdir.")
        return _exported(_EXPORTED.value)
    return _of_run_with_exits() if early else _of_run()


def _of_run() -> _Network:
    directory = cli.workdir()
    parts, restored = evaluation.open_run(directory)
    predict = evaluation.Predictor(parts)

    def answers(pixels: Sequence[np.ndarray]) -> Iterator[_Answer]:
        return ((row, {}) for row in predict(restored.state, pixels))

    return _Network(
        answers,
        predict.batch_size,
        parts.recipe.view,
        parts.dataset.class_names,
        {"workdir": str(directory), "step": restored.step},
    )


def _of_run_with_exits() -> _Network:
    directory = cli.workdir()
    parts, restored = evaluation.open_run(directory)
    within = _WITHIN_MS.value
    if within is None:
        policy = early_exit_report.read(directory)
        if policy["step"] != restored.step:
            raise UserError(
                f"The thresholds of {directory} are those of step {policy['step']}, "
                f"its newest checkpoint is that of {restored.step}: run evaluate again."
            )
        network = EarlyExit(parts, restored.state, policy["confidence"])
        rule, batch_size = by_threshold(policy["thresholds"]), network.batch_size
    else:
        network = EarlyExit(parts, restored.state)
        last = _deepest(network, within)
        rule, batch_size = (lambda number, sure: np.full(len(sure), number == last)), 1

    def answers(pixels: Sequence[np.ndarray]) -> Iterator[_Answer]:
        found = network([np.stack(pixels)], rule)
        probabilities = np.asarray(jax.nn.softmax(found.logits))
        for row, exit_ in zip(probabilities, found.exits, strict=True):
            yield row, {"depth": network.depths[exit_]}

    return _Network(
        answers,
        batch_size,
        parts.recipe.view,
        parts.dataset.class_names,
        {"workdir": str(directory), "step": restored.step},
    )


def _deepest(network: EarlyExit, within: float) -> int:
    """The number of the deepest exit that answers one image in so many milliseconds."""
    milliseconds = 1000 * network.latencies()
    for depth, value in zip(network.depths, milliseconds, strict=True):
        print(f"behind block {depth}: {value:.2f} ms", file=sys.stderr)
    reached = np.flatnonzero(milliseconds <= within)
    if not len(reached):
        raise UserError(
            f"--within_ms={within:g} is too short: the first exit answers after "
            f"{milliseconds[0]:.2f} ms on this machine."
        )
    return int(reached[-1])


def _exported(name: str) -> _Network:
    found = exported.read(epath.Path(name).expanduser())

    def answers(pixels: Sequence[np.ndarray]) -> Iterator[_Answer]:
        rows = np.asarray(jax.nn.softmax(found.call(np.stack(pixels))))
        return ((row, {}) for row in rows)

    about = {"exported": name, "step": found.signature["step"]}
    return _Network(answers, _BATCH, found.view, found.class_names, about)


def _files(names: tuple[str, ...]) -> Iterator[str]:
    """The files that the words of the command line mean, in their order."""
    for name in names:
        directory = epath.Path(name).expanduser()
        if name == "-":
            yield from sys.stdin.read().splitlines()
        elif directory.is_dir():
            yield from images.files_in(directory)
        else:
            yield name


def _readable(
    files: list[str], view: View, unreadable: list[dict[str, str]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The pixels of each file; those that cannot be read are named and collected."""
    for path in files:
        try:
            yield path, view.fit(epath.Path(path).expanduser().read_bytes())
        except OSError as error:
            why = error.strerror or str(error)
            print(f"{path} cannot be read: {why}", file=sys.stderr, flush=True)
            unreadable.append({"image": path, "error": why})


if __name__ == "__main__":
    cli.run(
        main,
        uses=("workdir", "exported", "top", "early_exit", "within_ms", "json"),
        rest="image",
    )
