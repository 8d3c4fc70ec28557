"""Classifies images with the newest checkpoint of a run.

    python -m dresnet_jax.predict --workdir=runs/digits image.png photos/
    ls photos/*.png | python -m dresnet_jax.predict --workdir=runs/digits -
    python -m dresnet_jax.predict --exported=exported image.png
    python -m dresnet_jax.predict --workdir=runs/exits --early_exit photos/

--exported takes what dresnet_jax.export wrote instead of a run.

A network with exits answers early with --early_exit, by the thresholds that evaluate
fitted, or with --within_ms, at the deepest exit that this machine reaches in this many
milliseconds, measured for one image first.

Takes files, directories, whose images are found at any depth, and - for a list of files
on standard input. Prints the most probable classes of each. An image that cannot be
read is named, and the others are still classified; the exit code is then 1.
"""

import functools
import itertools
import sys
from typing import TYPE_CHECKING, Any

from etils import epath

from dresnet_jax.commands import cli
from dresnet_jax.errors import RunFailedError, UserError

if TYPE_CHECKING:
    from dresnet_jax.inference.classifiers import ImageClassifier

command = cli.Command(__doc__, "workdir compilation_cache json", rest=True)

_EXPORTED = command.flag("exported", str, "Directory that dresnet_jax.export wrote.")
_TOP = command.flag("top", 3, "Classes named for each image.", lower_bound=1)

_EARLY_EXIT = command.flag(
    "early_exit", False, "Answer at the first exit that is sure enough."
)
_WITHIN_MS = command.flag(
    "within_ms",
    float,
    "Milliseconds for one image: answer at the deepest exit in time.",
)


@command.main
def main(*names: str) -> None:
    """Reads, classifies, prints."""
    if not names:
        raise UserError("A word is missing: the image. See --help.")

    import numpy as np

    from dresnet_jax.data.images import printable
    from dresnet_jax.inference.image_files import ImageFiles

    files = ImageFiles(names, functools.partial(print, file=sys.stderr, flush=True))
    network = _classifier()
    predictions: list[dict[str, Any]] = []
    readable = files.read(network.view)
    while batch := list(itertools.islice(readable, network.batch_size)):
        paths, pixels = zip(*batch, strict=True)
        for path, (row, depth) in zip(paths, network.answers(pixels), strict=True):
            if not np.isfinite(row).all():
                files.leave_out(path, "is answered by what is no number")
                continue
            top = [
                {
                    "class": network.class_names[i],
                    "label": int(i),
                    "probability": float(row[i]),
                }
                for i in np.argsort(-row, kind="stable")[: _TOP.value]
            ]
            predictions.append({"image": printable(path), "top": top} | depth)
            cells = [f"{x['class']} {x['probability']:.3f}" for x in top]
            cells += [f"after block {n}" for n in depth.values()]
            print(f"{printable(path)}: {', '.join(cells)}", flush=True)
    result = {"predictions": predictions, "unreadable": files.unreadable}
    command.finish(network.about | result)
    if files.unreadable:
        many = f"{len(files.unreadable)} of {len(files.paths)}"
        raise RunFailedError(f"{many} are not answered.")


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


if __name__ == "__main__":
    sys.exit(command.run())
