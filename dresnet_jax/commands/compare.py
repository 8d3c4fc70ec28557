"""Compares models: trains several seeds of each, and writes a report.

    python -m dresnet_jax.compare --config=configs/compare/digits.py --workdir=runs/pay

The same command resumes where it was stopped, and skips the runs that are done. The
workdir then holds a run directory for each run, report.html, report.md, report.json,
runs.csv and the figures.
"""

import contextlib
import sys

from dresnet_jax.commands import cli, config_files
from dresnet_jax.errors import UserError

command = cli.Command(
    __doc__, "config workdir overwrite compilation_cache json", configs="compare"
)


@command.main
def main() -> None:
    """Trains what is missing, compares, writes."""
    config, directory = command.config(), command.workdir()
    if "base" not in config:
        raise UserError(
            f"--config is that of a run: {config_files.choices('compare')}."
        )

    from dresnet_jax.comparison import grid, growth, progress, report, runner
    from dresnet_jax.data import prepared
    from dresnet_jax.training import experiment, workdir

    command.use_compilation_cache()
    exp = experiment.build(config.base)
    prepared.require(exp.dataset, config.base.data.data_dir)
    grows = bool(config.base.growth.events)
    if grows:
        growth.check(config)
    with workdir.claim(directory, config, overwrite=command.flags.overwrite):
        if grows:
            result = growth.run(config, directory, command.line)
            print(growth.table(result), directory / "report.md", sep="\n")
            command.finish(result)
            return
        plan = grid.plan(config, directory)
        grid.write_plan(plan, directory)
        print(report.plan_table(plan))
        print(plan.together.description, flush=True)
        runs = grid.runs(config, plan, directory)
        missing = [run for run in runs if not run.is_done]
        if len(missing) < len(runs):
            print(f"{len(runs) - len(missing)} runs were done before")
        together = plan.together.seeds
        groups = runner.grouped(missing, together)
        missing = [run for group in groups for run in group]
        cache = command.flags.compilation_cache
        step_seconds = {name: cost.step_seconds for name, cost in plan.costs.items()}
        with (
            progress.Progress(missing, len(runs), step_seconds) as shown,
            contextlib.closing(
                runner.ended(groups, shown.started, config.at_once, together, cache)
            ) as ended,
        ):
            for group, seconds in ended:
                shown.ended(group, seconds)
        finished, failed = grid.read(runs)
        result = report.report(config, plan, finished, failed, command.line)
        report.write(result, finished, directory)
    print(report.table(result))
    for sentence in result["answer"]:
        print(sentence)
    print(f"report: {directory / 'report.html'}")
    command.finish(result)


if __name__ == "__main__":
    sys.exit(command.run())
