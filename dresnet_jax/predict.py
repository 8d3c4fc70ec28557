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

import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from dresnet_jax import cli
from dresnet_jax.errors import RunFailedError, UserError

if TYPE_CHECKING:
    import numpy as np

    from dresnet_jax.analysis.image_classifiers import ImageClassifier
    from dresnet_jax.data.views import View

command = cli.Command(__doc__, "workdir compilation_cache json", rest="image")

_EXPORTED = command.flag(
    flags.DEFINE_string, "exported", None, "Directory that dresnet_jax.export wrote."
)
_TOP = command.flag(
    flags.DEFINE_integer, "top", 3, "Classes named for each image.", lower_bound=1
)

_EARLY_EXIT = command.flag(
    flags.DEFINE_bool,
    "early_exit",
    False,
    "Answer at the first exit that is sure enough.",
)
_WITHIN_MS = command.flag(
    flags.DEFINE_float,
    "within_ms",
    None,
    "Milliseconds for one image: answer at the deepest exit in time.",
)


@command.main
def main(*names: str) -> None:
    """Reads, classifies, prints."""
    import numpy as np

    files = list(_files(names))
    if not files:
        raise UserError("No image is named on standard input.")
    network = _classifier()
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
    command.finish(
        {
            **network.about,
            "predictions": predictions,
            "unreadable": unreadable,
        }
    )
    if unreadable:
        raise RunFailedError(f"{len(unreadable)} of {len(files)} cannot be read.")


def _classifier() -> "ImageClassifier":
    """What the flags name."""
    within = _WITHIN_MS.value
    if _EARLY_EXIT.value and within is not None:
        raise UserError("Give one of --early_exit and --within_ms.")
    early = _EARLY_EXIT.value or within is not None
    if _EXPORTED.value is not None:
        if early:
            raise UserError("An exported network has one exit: give --workdir.")
        directory = epath.Path(_EXPORTED.value).expanduser()
    else:
        directory = command.workdir()

    from dresnet_jax.analysis import image_classifiers

    command.use_compilation_cache()
    if _EXPORTED.value is not None:
        return image_classifiers.of_exported(directory)
    if early:
        return image_classifiers.with_exits(directory, within)
    return image_classifiers.of_run(directory)


def _files(names: tuple[str, ...]) -> Iterator[str]:
    """The files that the words of the command line mean, in their order."""
    for name in names:
        directory = epath.Path(name).expanduser()
        if name == "-":
            yield from sys.stdin.read().splitlines()
        elif directory.is_dir():
            from dresnet_jax.data import images

            yield from images.files_in(directory)
        else:
            yield name


def _readable(
    files: list[str], view: "View", unreadable: list[dict[str, str]]
) -> "Iterator[tuple[str, np.ndarray]]":
    """The pixels of each file; those that cannot be read are named and collected."""
    for path in files:
        try:
            yield path, view.fit(epath.Path(path).expanduser().read_bytes())
        except OSError as error:
            why = error.strerror or str(error)
            print(f"{path} cannot be read: {why}", file=sys.stderr, flush=True)
            unreadable.append({"image": path, "error": why})


if __name__ == "__main__":
    sys.exit(command.run())
