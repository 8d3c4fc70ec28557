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
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from dresnet_jax.commands import cli
from dresnet_jax.errors import RunFailedError, UserError

if TYPE_CHECKING:
    import numpy as np

    from dresnet_jax.data.views import View
    from dresnet_jax.inference.classifiers import ImageClassifier

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

    from dresnet_jax.data import images

    unreadable: list[dict[str, str]] = []
    files = _files(names, unreadable)
    network = _classifier()
    classes = network.class_names
    predictions: list[dict[str, Any]] = []
    readable = _readable(files, network.view, unreadable)
    while batch := list(itertools.islice(readable, network.batch_size)):
        paths, pixels = zip(*batch, strict=True)
        for path, (row, depth) in zip(paths, network.answers(pixels), strict=True):
            path = images.printable(path)
            if not np.isfinite(row).all():
                _name(path, "is answered by what is no number", unreadable)
                continue
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
        raise RunFailedError(f"{len(unreadable)} of {len(files)} are not answered.")


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

    from dresnet_jax.inference import classifiers

    command.use_compilation_cache()
    if _EXPORTED.value is not None:
        return classifiers.of_exported(directory)
    if early:
        return classifiers.with_exits(directory, within)
    return classifiers.of_run(directory)


def _files(names: tuple[str, ...], unreadable: list[dict[str, str]]) -> list[str]:
    """The files that the words of the command line mean, in their order.

    Raises:
      UserError: there is none.
    """
    from dresnet_jax.data import images

    files: list[str] = []
    for name in names:
        directory = epath.Path(name).expanduser()
        if name == "-":
            lines = sys.stdin.buffer.read().split(b"\n")
            files += [os.fsdecode(line.rstrip(b"\r")) for line in lines if line]
        elif directory.is_dir():
            found = images.files_in(directory)
            for path, why in found.unreadable:
                _name(images.printable(path), f"cannot be read: {why}", unreadable)
            if not found.images and not found.unreadable:
                kinds = ", ".join(images.SUFFIXES)
                raise UserError(f"Directory {directory} holds no image: {kinds}.")
            if found.others:
                print(
                    f"{images.printable(name)}: files that are no images by their "
                    f"names, passed over: {found.others}",
                    file=sys.stderr,
                )
            files += found.images
        else:
            files.append(name)
    if not files and not unreadable:
        raise UserError("No image is named on standard input.")
    return files


def _readable(
    files: list[str], view: "View", unreadable: list[dict[str, str]]
) -> "Iterator[tuple[str, np.ndarray]]":
    """The pixels of each file; those that cannot be read are named and collected."""
    from dresnet_jax.data import images

    for name in files:
        path = epath.Path(name).expanduser()
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is no regular file")
            yield name, view.fit(path.read_bytes())
        # A name with a NUL byte is a ValueError.
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            _name(images.printable(name), f"cannot be read: {why}", unreadable)


def _name(path: str, why: str, unreadable: list[dict[str, str]]) -> None:
    print(f"{path} {why}", file=sys.stderr, flush=True)
    unreadable.append({"image": path, "error": why})


if __name__ == "__main__":
    sys.exit(command.run())
