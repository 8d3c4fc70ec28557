"""Prepares a dataset for training, or tells its pixels' mean and standard deviation.

    python -m dresnet_jax.prepare --dataset=fashion_mnist
    python -m dresnet_jax.prepare --dataset=fashion_mnist --from_dir=archives
    python -m dresnet_jax.prepare --dataset=fashion_mnist --statistics

The first fetches the original archives, the second takes those that lie in a
directory; both check them by the checksums that TensorFlow Datasets registers, and need
TensorFlow (requirements-prepare.txt). Nothing else in this package does.
"""

from absl import flags

from dresnet_jax import cli
from dresnet_jax.data import catalog, preparation, sources
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
    if _DATASET.value is None:
        names = ", ".join(sorted(catalog.DATASETS))
        raise UserError(f"--dataset is missing: give one of {names}.")
    dataset = pick("dataset", _DATASET.value, catalog.DATASETS)
    if _STATISTICS.value:
        mean, std = sources.statistics(dataset, _DATA_DIR.value)
        print(f"{dataset.name}: mean {mean}, standard deviation {std}")
        cli.finish({"dataset": dataset.name, "mean": mean, "std": std})
        return
    path = preparation.prepare(dataset, _DATA_DIR.value, _FROM_DIR.value)
    print(f"{dataset.name} is prepared in {path}")
    cli.finish({"dataset": dataset.name, "path": str(path)})


if __name__ == "__main__":
    cli.run(main, uses=("dataset", "data_dir", "from_dir", "statistics", "json"))
