"""Prepares a dataset for training, or prints its pixels' mean and standard deviation.

    python -m dresnet_jax.prepare --dataset=fashion_mnist
    python -m dresnet_jax.prepare --dataset=fashion_mnist --from_dir=archives
    python -m dresnet_jax.prepare --dataset=fashion_mnist --statistics

The first fetches the original archives, the second takes those that lie in a
directory (for imagenet2012 the only way); both check them by the checksums that
TensorFlow Datasets registers, and need TensorFlow (requirements-prepare.txt). Nothing
else in this package does.

    python -m dresnet_jax.prepare --dataset=folder --from_dir=flowers --data_dir=data

takes your own images instead: flowers/<class>/<image>, or flowers/train/<class>
with validation (or val, valid) and test next to train. An image that cannot be read is
named and ends it, or is left out with --skip_corrupt. docs/data.md says what is taken.
"""

import sys
from typing import Any

from dresnet_jax.commands import cli
from dresnet_jax.data import catalog
from dresnet_jax.errors import UserError, pick

command = cli.Command(__doc__, "json")

_DATASET = command.flag("dataset", str, "Name in the catalogue.")
_DATA_DIR = command.flag(
    "data_dir", "~/dresnet_jax_data", "Where prepared datasets lie."
)
_FROM_DIR = command.flag(
    "from_dir", str, "Directory of the original archives, instead of the network."
)
_SKIP_CORRUPT = command.flag(
    "skip_corrupt", False, "Of a folder: leave out images that cannot be read."
)
_STATISTICS = command.flag(
    "statistics", False, "Print mean and standard deviation of the training pixels."
)


@command.main
def main() -> None:
    """Prepares or measures, prints."""
    names = [*catalog.DATASETS, "folder"]
    if _DATASET.value is None:
        raise UserError(
            f"--dataset is missing: give one of {', '.join(sorted(names))}."
        )
    name = pick("dataset", _DATASET.value, dict(zip(names, names, strict=True)))
    data_dir, from_dir = _DATA_DIR.value, _FROM_DIR.value

    from dresnet_jax.data import lookup, preparation, sources, views

    if _STATISTICS.value:
        dataset = lookup.named(name, data_dir)
        view = views.View(dataset.image_size, dataset.channels, dataset.fixed_size)
        mean, std = sources.statistics(dataset, data_dir, view.evaluate)
        print(f"{name}: mean {mean}, standard deviation {std}")
        command.finish({"dataset": name, "mean": mean, "std": std})
        return
    result: dict[str, Any] = {"dataset": name}
    if name == "folder":
        path, images = preparation.prepare_folder(
            data_dir, from_dir, skip_corrupt=_SKIP_CORRUPT.value
        )
        print("\n".join(images.lines()))
        result |= {
            "images": {split: len(files) for split, files in images.files.items()},
            "left_out": dict(+images.left_out),
        }
    else:
        path = preparation.prepare(catalog.DATASETS[name], data_dir, from_dir)
    print(f"{name} is prepared in {path}")
    command.finish(result | {"path": str(path)})


if __name__ == "__main__":
    sys.exit(command.run())
