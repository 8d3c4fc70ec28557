"""Evaluates the newest checkpoint of a run.

    python -m dresnet_jax.evaluate --workdir=runs/digits --split=test

Prints accuracy, loss, the accuracy of each class and the confusion matrix, and writes
them to evaluation_<split>.json in the run directory.
"""

from absl import flags

from dresnet_jax import cli
from dresnet_jax.analysis import reports
from dresnet_jax.data import catalog
from dresnet_jax.training import evaluation, workdir

_SPLIT = flags.DEFINE_enum("split", "test", catalog.SPLITS, "Split to evaluate on.")


def main() -> None:
    """Evaluates, prints, writes."""
    directory = cli.workdir()
    parts, restored = evaluation.open_run(directory)
    examples = parts.open_splits()[_SPLIT.value]
    found = evaluation.Evaluator(parts)(restored.state, examples)
    report = {
        "workdir": str(directory),
        "split": _SPLIT.value,
        "step": restored.step,
        "examples": len(found.labels),
        "skipped_records": found.skipped,
        "accuracy": found.accuracy,
        "loss": found.loss,
        **reports.per_class(found.labels, found.predictions, parts.dataset.class_names),
    }
    print(reports.evaluation_table(report))
    workdir.write_json(directory / f"evaluation_{_SPLIT.value}.json", report)
    cli.finish(report)


if __name__ == "__main__":
    cli.run(main, uses=("workdir", "split", "json"))
