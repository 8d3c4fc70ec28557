"""Prepares a dataset for training, or tells its pixels' mean and standard deviation.

    python -m dresnet_jax.prepare --dataset=fashion_mnist
    python -m dresnet_jax.prepare --dataset=fashion_mnist --from_dir=archives
    python -m dresnet_jax.prepare --dataset=fashion_mnist --statistics

The first fetches the original archives, the second takes those that lie in a
directory (for imagenet2012 the only way); both check them by the checksums that
TensorFlow Datasets registers, and need TensorFlow (requirements-prepare.txt). Nothing
else in this package does.

    python -m dresnet_jax.prepare --dataset=folder --from_dir=flowers --data_dir=data

takes a person's own images instead: flowers/<class>/<image>, or flowers/train/<class>
with validation and test beside train.
"""

from absl import flags

from dresnet_jax import cli
from dresnet_jax.data import catalog, lookup, preparation, sources, views
from dresnet_jax.errors import UserError, pick

_DATASET = flags.DEFINE_string("dataset", None, "Name in the catalogue.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "~/dresnet_jax_data", "Where prepared datasets lie."
)
_FROM_DIR = flags.DEFINE_string(
    "from_dir", None, "Directory of the original archives, instead of the network."
)
_STATISTICS = flags.DEFINE_bool(
    "statistics", False, "Print mean and standard deviation of the training pixels."
)


def main() -> None:
    """Prepares or measures, prints."""
    names = [*catalog.DATASETS, "folder"]
    if _DATASET.value is None:
        raise UserError(
            f"--dataset is missing: give one of {', '.join(sorted(names))}."
        )
    name = pick("dataset", _DATASET.value, dict(zip(names, names, strict=True)))
    data_dir, from_dir = _DATA_DIR.value, _FROM_DIR.value
    if _STATISTICS.value:
        dataset = lookup.named(name, data_dir)
        view = views.View(dataset.image_size, dataset.channels, dataset.fixed_size)
        mean, std = sources.statistics(dataset, data_dir, view.evaluate)
        print(f"{name}: mean {mean}, standard deviation {std}")
        cli.finish({"dataset": name, "mean": mean, "std": std})
        return
    if name == "folder":
        path = preparation.prepare_folder(data_dir, from_dir)
    else:
        path = preparation.prepare(catalog.DATASETS[name], data_dir, from_dir)
    print(f"{name} is prepared in {path}")
    cli.finish({"dataset": name, "path": str(path)})


if __name__ == "__main__":
    cli.run(main, uses=("dataset", "data_dir", "from_dir", "statistics", "json"))
