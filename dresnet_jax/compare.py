"""Compares models: trains several seeds of each, and writes a report.

    python -m dresnet_jax.compare --config=configs/compare/digits.py --workdir=runs/pay

The same command goes on where it was stopped, and skips the runs that are done. The
workdir then holds a run directory for each run, report.html, report.md, report.json,
runs.csv and the figures.
"""

import sys

from dresnet_jax import cli
from dresnet_jax.errors import UserError

command = cli.Command(
    __doc__, "config workdir overwrite compilation_cache json", resumes=True
)


@command.main
def main() -> None:
    """Trains what is missing, compares, writes."""
    config, directory = command.config(), command.workdir()
    if "base" not in config:
        raise UserError("--config is that of a run: give one of configs/compare/.")

    from dresnet_jax.analysis import (
        comparison,
        comparison_progress,
        comparison_report,
        comparison_training,
        growth_comparison,
    )
    from dresnet_jax.data import prepared
    from dresnet_jax.training import experiment, workdir

    command.use_compilation_cache()
    parts = experiment.build(config.base)
    prepared.require(parts.dataset, config.base.data.data_dir)
    grows = bool(config.base.growth.events)
    if grows:
        growth_comparison.check(config)
    with workdir.claim(directory, config, overwrite=command.flags.overwrite):
        if grows:
            report = growth_comparison.run(config, directory, command.line)
            print(growth_comparison.table(report), directory / "report.md", sep="\n")
            command.finish(report)
            return
        plan = comparison.plan(config, directory)
        comparison.write_plan(plan, directory)
        print(comparison_report.plan_table(plan))
        print(plan.together.description, flush=True)
        runs = comparison.runs(config, plan, directory)
        missing = [run for run in runs if not run.is_done]
        if len(missing) < len(runs):
            print(f"{len(runs) - len(missing)} runs were done before")
        together = plan.together.seeds
        groups = comparison_training.grouped(missing, together)
        missing = [run for group in groups for run in group]
        cache = command.flags.compilation_cache
        step_seconds = {name: cost.step_seconds for name, cost in plan.costs.items()}
        with (
            comparison_progress.Progress(missing, len(runs), step_seconds) as progress,
            comparison_training.trainers(config.at_once, together, cache) as train,
        ):
            for group, seconds in train(groups, progress.started):
                progress.ended(group, seconds)
        finished, failed = comparison.read(runs)
        report = comparison_report.report(config, plan, finished, failed, command.line)
        comparison_report.write(report, finished, directory)
    print(comparison_report.table(report))
    for sentence in report["answer"]:
        print(sentence)
    print(f"report: {directory / 'report.html'}")
    command.finish(report)


if __name__ == "__main__":
    sys.exit(command.run())
