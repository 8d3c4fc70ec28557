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

from absl import flags

from dresnet_jax.commands import cli
from dresnet_jax.data import catalog
from dresnet_jax.errors import UserError
from dresnet_jax.training import json_files

command = cli.Command(__doc__, "workdir compilation_cache json")

# The keys of `models.exits.CONFIDENCES`, which imports JAX.
_CONFIDENCES = ("probability", "entropy", "learned")

_SPLIT = command.flag(
    flags.DEFINE_enum, "split", "test", catalog.SPLITS, "Split to evaluate on."
)
_DATA_DIR = command.flag(
    flags.DEFINE_string,
    "data_dir",
    None,
    "Where the run's data are now; by default where they were.",
)
_MAX_LOSS = command.flag(
    flags.DEFINE_float,
    "max_loss",
    None,
    "By how much early exits may lower accuracy, as a share.",
)
_BUDGET = command.flag(
    flags.DEFINE_float,
    "budget",
    None,
    "Mean FLOPs of an image with early exits, as a share of all.",
)
_PER_BATCH = command.flag(
    flags.DEFINE_bool,
    "per_batch",
    False,
    "Hold the budget in each batch: a fixed share of its images leaves at each exit.",
)
_CONFIDENCE = command.flag(
    flags.DEFINE_enum,
    "confidence",
    "probability",
    list(_CONFIDENCES),
    "What an exit's threshold is of.",
)
_MIN_DEPTH = command.flag(
    flags.DEFINE_integer,
    "min_depth",
    0,
    "Blocks that every image passes.",
    lower_bound=0,
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
    wanted = early_exit_report.Wanted(
        confidence=_CONFIDENCE.value,
        max_loss=_MAX_LOSS.value,
        budget=_BUDGET.value,
        per_batch=_PER_BATCH.value,
        min_depth=_MIN_DEPTH.value,
    )
    parts, restored = evaluation.open_run(directory, _DATA_DIR.value)
    about = {"workdir": str(directory), "split": _SPLIT.value, "step": restored.step}
    if early:
        found = early_exit_report.measure(parts, restored.state, wanted, _SPLIT.value)
        early_exit_report.write(directory, found, about)
        print(found.text)
        command.finish(about | found.report)
        return
    examples = parts.open_splits()[_SPLIT.value]
    evaluated = evaluation.evaluate(parts, restored.state, examples)
    report = {
        **about,
        "examples": len(evaluated.labels),
        "skipped_records": evaluated.skipped,
        "accuracy": evaluated.accuracy,
        "loss": evaluated.loss,
        **evaluation_tables.per_class(
            evaluated.labels, evaluated.predictions, parts.dataset.class_names
        ),
    }
    print(evaluation_tables.table(report))
    json_files.write_json(directory / f"evaluation_{_SPLIT.value}.json", report)
    command.finish(report)


if __name__ == "__main__":
    sys.exit(command.run())
