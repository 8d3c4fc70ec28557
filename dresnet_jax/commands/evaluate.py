"""Evaluates the newest checkpoint of a run.

    python -m dresnet_jax.evaluate --workdir=runs/digits --split=test
    python -m dresnet_jax.evaluate --workdir=runs/exits --max_loss=0.002
    python -m dresnet_jax.evaluate --workdir=runs/exits --budget=0.6

Prints accuracy, loss, the accuracy of each class and the confusion matrix, and writes
them to evaluation_<split>.json in the run directory.

With --max_loss or --budget, a network with exits (config.model.exits) answers each
image at the first exit that is sure enough. The thresholds are fitted on the validation
split, and written to early_exit.json, where predict --early_exit reads them; what they
save is measured against the whole network, and drawn in early_exit.png.
"""

import sys

from dresnet_jax.commands import cli
from dresnet_jax.data import catalog
from dresnet_jax.errors import UserError
from dresnet_jax.training import json_files

command = cli.Command(__doc__, "workdir compilation_cache json")

_SPLIT = command.flag(
    "split", "test", "Split to evaluate on.", enum_values=catalog.SPLITS
)
_DATA_DIR = command.flag(
    "data_dir", str, "Where the run's data are now; by default where they were."
)
_MAX_LOSS = command.flag(
    "max_loss", float, "By how much early exits may lower accuracy, as a share."
)
_BUDGET = command.flag(
    "budget", float, "Mean FLOPs of an image with early exits, as a share of all."
)
_PER_BATCH = command.flag(
    "per_batch",
    False,
    "Hold the budget in each batch: a fixed share of its images leaves at each exit.",
)
_CONFIDENCE = command.flag(
    "confidence",
    "probability",
    "What an exit's threshold is of.",
    # The keys of `models.exits.CONFIDENCES`, which imports JAX.
    enum_values=["probability", "entropy", "learned"],
)
_MIN_DEPTH = command.flag(
    "min_depth", 0, "Blocks that every image passes.", lower_bound=0
)


@command.main
def main() -> None:
    """Evaluates, prints, writes."""
    directory = command.workdir()
    early = _MAX_LOSS.value is not None or _BUDGET.value is not None
    if _MAX_LOSS.value is not None and _BUDGET.value is not None:
        raise UserError("Give one of --max_loss and --budget.")
    if not early and (_PER_BATCH.value or _MIN_DEPTH.value):
        raise UserError("--per_batch and --min_depth need --max_loss or --budget.")

    from dresnet_jax.figures import evaluation_tables
    from dresnet_jax.inference import early_exit_report
    from dresnet_jax.training import evaluation

    command.use_compilation_cache()
    # Wrong values are named before the run is opened, which takes its time.
    goal = early_exit_report.Goal(
        confidence=_CONFIDENCE.value,
        max_loss=_MAX_LOSS.value,
        budget=_BUDGET.value,
        per_batch=_PER_BATCH.value,
        min_depth=_MIN_DEPTH.value,
    )
    exp, restored = evaluation.open_run(directory, _DATA_DIR.value)
    about = {"workdir": str(directory), "split": _SPLIT.value, "step": restored.step}
    if early:
        result, curve = early_exit_report.measure(
            exp, restored.state, goal, _SPLIT.value
        )
        report = about | result
        early_exit_report.write(directory, report, curve)
        print(early_exit_report.text(report))
        command.finish(report)
        return
    examples = exp.open_splits()[_SPLIT.value]
    evaluated = evaluation.evaluate(exp, restored.state, examples)
    report = {
        **about,
        "examples": len(evaluated.labels),
        "skipped_records": evaluated.skipped,
        "accuracy": evaluated.accuracy,
        "loss": evaluated.loss,
        **evaluation_tables.per_class(
            evaluated.labels, evaluated.predictions, exp.dataset.class_names
        ),
    }
    print(evaluation_tables.table(report))
    json_files.write_json(directory / f"evaluation_{_SPLIT.value}.json", report)
    command.finish(report)


if __name__ == "__main__":
    sys.exit(command.run())
