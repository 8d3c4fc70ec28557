"""Prints what a model is and what a training step costs, without training.

    python -m dresnet_jax.plan --config=configs/digits.py --config.model.width=32
    python -m dresnet_jax.plan --config=configs/imagenet2012.py --target=v5e:4x4

Prints the table of parameters, the FLOPs of a step and, of the compiled step, bytes and
memory as the compiler counts them, per device. With --target the step is compiled for
TPU chips that need not be there (requirements-tpu-plan.txt): 2xv5e:4x4 are two slices
of 4x4 chips. Memory, bytes and collectives are the compiler's counts; times, and
what follows from them, are estimates by published figures of the chip. Data are not
read. --sweep=32,64,128 compiles for each of these batches per chip, and prints the
largest that fits.
"""

import sys
from typing import TYPE_CHECKING, Any

from dresnet_jax.commands import cli
from dresnet_jax.errors import UserError

if TYPE_CHECKING:
    from dresnet_jax.training import experiment

command = cli.Command(__doc__, "config compilation_cache json")

_NO_COMPILE = command.flag(
    "no_compile", False, "Leave out what needs the compiler: bytes and memory."
)
_TARGET = command.flag("target", "cpu", "The devices here, or such as v5e:4x4.")
_BATCH_PER_CHIP = command.flag(
    "batch_per_chip", int, "Images of a step on each chip of a target.", lower_bound=1
)
_SWEEP = command.flag("sweep", list, "Batches per chip of a target, to try each.")


@command.main
def main() -> None:
    """Builds, compiles, prints."""
    command.finish(_here() if _TARGET.value == "cpu" else _on_target())


def _here() -> dict[str, Any]:
    for flag in (_BATCH_PER_CHIP, _SWEEP):
        if flag.value is not None:
            raise UserError(f"--{flag.name} needs a --target, such as v5e:4x4.")
    config = command.config()

    from dresnet_jax.costs import cost, tables
    from dresnet_jax.training import experiment

    command.use_compilation_cache()
    exp = experiment.build(config)
    report = _describe(exp)
    if _NO_COMPILE.value:
        print(f"FLOPs per step:      {exp.step_flops / 1e9:12.3f} G")
        report["flops_per_step"] = exp.step_flops
    else:
        program = cost.of(exp.compile_train_step(), exp.step_flops)
        print(tables.cost_table(program))
        report |= tables.counts(program)
    return report | _added(exp)


def _on_target() -> dict[str, Any]:
    if _NO_COMPILE.value:
        raise UserError("--no_compile prints nothing about a --target.")
    config, batches = command.config(), _batches()

    from dresnet_jax.costs import chips, pod, tables

    command.use_compilation_cache()
    target = chips.parse(_TARGET.value)
    more: dict[str, Any] = {}
    if batches is None:
        plan = pod.make(config, target, _BATCH_PER_CHIP.value)
    else:
        sweep = pod.sweep(config, target, batches)
        more = pod.sweep_report(sweep)
        *_, plan = filter(None, sweep.values())
        print(tables.sweep_table(sweep))
    report = _describe(plan.part)
    print(tables.pod_table(plan))
    added = _added(plan.part)
    return report | tables.counts(plan.cost) | plan.report() | added | more


def _describe(exp: "experiment.Experiment") -> dict[str, Any]:
    """Prints what a run is."""
    from clu import parameter_overview

    from dresnet_jax.training import reporting
    from dresnet_jax.training.state import num_parameters

    params = exp.create_state(abstract=True).params
    print(parameter_overview.get_parameter_overview(params, include_stats=False))
    print(f"connections: {reporting.connections(exp)}")
    name, size = exp.config.model.name, num_parameters(params)
    print(f"{name}: {size:,} parameters")
    return {
        "model": name,
        "params": size,
        "num_steps": exp.num_steps,
        "batch_size": exp.recipe.batch_size,
    }


def _added(exp: "experiment.Experiment") -> dict[str, Any]:
    """Prints what connections add to the plain network."""
    from dresnet_jax.training import reporting

    reporting.print_connection_cost(exp)
    more_params, more_flops = reporting.connection_cost(exp)
    return {"connections_add": {"params": more_params, "flops": more_flops}}


def _batches() -> list[int] | None:
    """The batches of --sweep, the smallest first; None where it was not given."""
    if _SWEEP.value is None:
        return None
    if _BATCH_PER_CHIP.value is not None:
        raise UserError("--batch_per_chip and --sweep exclude each other.")
    names = _SWEEP.value
    if any(not name.isdecimal() or int(name) < 1 for name in names):
        raise UserError(
            f"--sweep={','.join(names)} must be whole numbers above 0, as in 32,64."
        )
    return sorted({int(name) for name in names})


if __name__ == "__main__":
    sys.exit(command.run())
