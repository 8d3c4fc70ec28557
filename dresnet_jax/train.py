"""Trains a model, or goes on with a run that was stopped.

    python -m dresnet_jax.train --config=configs/digits.py --workdir=runs/digits

The run directory then holds config.json, checkpoints/, metrics.jsonl, tensorboard/,
report.json and the pictures curves.png, gates.png and gate_functions.png. The same
command goes on with an unfinished run from its newest checkpoint.
"""

from absl import flags

from dresnet_jax import cli
from dresnet_jax.analysis import plots, reports
from dresnet_jax.data import prepared
from dresnet_jax.training import experiment, loop, workdir

_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Delete the run that the workdir holds, and start anew."
)


def main() -> None:
    """Trains, draws, prints."""
    config, directory = cli.config(), cli.workdir()
    parts = experiment.build(config)
    prepared.require(parts.dataset, config.data.data_dir)
    with workdir.claim(directory, config, overwrite=_OVERWRITE.value):
        report = loop.run(parts, directory)
    if report["gates"]:
        print(reports.gate_table(report["gates"]))
    for picture in plots.run_pictures(directory):
        print(f"picture: {picture}")
    print(f"validation accuracy: {report['val_accuracy']:.3f}")
    print(f"test accuracy: {report['test_accuracy']:.3f}")
    cli.finish(report)


if __name__ == "__main__":
    cli.run(main, uses=("config", "workdir", "overwrite", "json"))
