"""Classifies images with the newest checkpoint of a run.

    python -m dresnet_jax.predict --workdir=runs/digits image.png photos/
    ls photos/*.png | python -m dresnet_jax.predict --workdir=runs/digits -
    python -m dresnet_jax.predict --exported=exported image.png

--exported takes what dresnet_jax.export wrote in the place of a run.

Takes files, directories, whose images are found at any depth, and - for a list of files
on standard input. Prints the most probable classes of each. An image that cannot be
read is named, and the others are still classified; the exit code is then 1.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from dresnet_jax import cli
from dresnet_jax.data import images
from dresnet_jax.data.views import View
from dresnet_jax.errors import RunFailedError, UserError
from dresnet_jax.structure import exported
from dresnet_jax.training import evaluation

_EXPORTED = flags.DEFINE_string(
    "exported", None, "Directory that dresnet_jax.export wrote."
)
_TOP = flags.DEFINE_integer("top", 3, "Classes named for each image.", lower_bound=1)

# Images that an exported network is given at once.
_BATCH = 128


def main(*names: str) -> None:
    """Reads, classifies, prints."""
    files = list(_files(names))
    if not files:
        raise UserError("No image is named on standard input.")
    network = _of_run() if _EXPORTED.value is None else _exported(_EXPORTED.value)
    classes = network.class_names
    unreadable: list[dict[str, str]] = []
    predictions: list[dict[str, Any]] = []
    readable = _readable(files, network.view, unreadable)
    while batch := list(itertools.islice(readable, network.batch_size)):
        paths, pixels = zip(*batch, strict=True)
        probabilities = network.probabilities(pixels)
        for path, row in zip(paths, probabilities, strict=True):
            top = [
                {
                    "class": classes[i],
                    "label": int(i),
                    "probability": float(row[i]),
                }
                for i in np.argsort(-row, kind="stable")[: _TOP.value]
            ]
            predictions.append({"image": path, "top": top})
            cells = (f"{x['class']} {x['probability']:.3f}" for x in top)
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


@dataclasses.dataclass(frozen=True)
class _Network:
    """What classifies: from pixels of at most `batch_size` images to probabilities."""

    probabilities: Callable[[Sequence[np.ndarray]], np.ndarray]
    batch_size: int
    view: View
    class_names: Sequence[str]
    about: dict[str, Any]


def _of_run() -> _Network:
    directory = cli.workdir()
    parts, restored = evaluation.open_run(directory)
    predict = evaluation.Predictor(parts)
    return _Network(
        functools.partial(predict, restored.state),
        predict.batch_size,
        parts.recipe.view,
        parts.dataset.class_names,
        {"workdir": str(directory), "step": restored.step},
    )


def _exported(name: str) -> _Network:
    found = exported.read(epath.Path(name).expanduser())

    def probabilities(pixels: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray(jax.nn.softmax(found.call(np.stack(pixels))))

    about = {"exported": name, "step": found.signature["step"]}
    return _Network(probabilities, _BATCH, found.view, found.class_names, about)


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
    cli.run(main, uses=("workdir", "exported", "top", "json"), rest="image")
