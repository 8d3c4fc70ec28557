"""Tells what a model is and what a training step costs, without training.

    python -m dresnet_jax.plan --config=configs/digits.py --config.model.width=32
    python -m dresnet_jax.plan --config=configs/imagenet2012.py --target=v5e:4x4

Prints the table of parameters and, of the compiled step, FLOPs and memory as the
compiler counts them, per device. With --target the step is compiled for TPU chips that
need not be there (requirements-tpu-plan.txt): 2xv5e:4x4 are two slices of 4x4 chips.
Memory, FLOPs, bytes and collectives of each chip are the compiler's counts; times, and
what follows from them, are estimates by published figures of the chip. Data are not
read. --sweep=32,64,128 compiles for each of these batches per chip, and tells of the
largest that fits.
"""

from typing import Any

import optax
from absl import flags

from dresnet_jax import cli
from dresnet_jax.analysis import chips, cost, pod, reports
from dresnet_jax.errors import UserError
from dresnet_jax.training import experiment

_NO_COMPILE = flags.DEFINE_bool(
    "no_compile", False, "Leave out what needs the compiler: FLOPs and memory."
)
_TARGET = flags.DEFINE_string("target", "cpu", "The devices here, or such as v5e:4x4.")
_BATCH_PER_CHIP = flags.DEFINE_integer(
    "batch_per_chip", None, "Images of a step on each chip of a target.", lower_bound=1
)
_SWEEP = flags.DEFINE_list("sweep", None, "Batches per chip of a target, to try each.")


def main() -> None:
    """Builds, compiles, prints."""
    cli.finish(_here() if _TARGET.value == "cpu" else _on_target())


def _here() -> dict[str, Any]:
    for flag in (_BATCH_PER_CHIP, _SWEEP):
        if flag.value is not None:
            raise UserError(f"--{flag.name} needs a --target, such as v5e:4x4.")
    parts = experiment.build(cli.config())
    report = _describe(parts)
    if not _NO_COMPILE.value:
        program = cost.of(parts.compile_train_step())
        print(reports.cost_table(program))
        report |= reports.counts(program)
    return report


def _on_target() -> dict[str, Any]:
    if _NO_COMPILE.value:
        raise UserError("--no_compile tells nothing of a --target.")
    target = chips.parse(_TARGET.value)
    if _SWEEP.value is None:
        plan, more = pod.make(cli.config(), target, _BATCH_PER_CHIP.value), {}
    else:
        sweep = pod.sweep(cli.config(), target, _batches())
        plan, more = sweep.largest, sweep.report()
        print(reports.sweep_table(sweep))
    report = _describe(plan.part)
    print(reports.pod_table(plan))
    return report | reports.counts(plan.cost) | plan.report() | more


def _describe(parts: experiment.Experiment) -> dict[str, Any]:
    """Prints what a run is."""
    params = parts.create_state(abstract=True).params
    print(reports.parameter_table(params))
    print(f"connections: {parts.connections_description}")
    name, size = parts.config.model.name, optax.tree.size(params)
    print(f"{name}: {size:,} parameters")
    return {
        "model": name,
        "params": size,
        "num_steps": parts.num_steps,
        "batch_size": parts.recipe.batch_size,
    }


def _batches() -> list[int]:
    """The batches of --sweep, the smallest first."""
    if _BATCH_PER_CHIP.value is not None:
        raise UserError("--batch_per_chip and --sweep exclude each other.")
    names = _SWEEP.value or [""]
    if any(not name.isdecimal() or int(name) < 1 for name in names):
        raise UserError(
            f"--sweep={','.join(names)} must be whole numbers above 0, as in 32,64."
        )
    return sorted({int(name) for name in names})


if __name__ == "__main__":
    cli.run(
        main, uses=("config", "no_compile", "target", "batch_per_chip", "sweep", "json")
    )
