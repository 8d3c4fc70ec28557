"""Tells what a model is and what a training step costs, without training.

    python -m dresnet_jax.plan --config=configs/digits.py --config.model.width=32

Prints the table of parameters and, of the compiled step, FLOPs and memory as the
compiler counts them, per device.
"""

import optax
from absl import flags

from dresnet_jax import cli
from dresnet_jax.analysis import cost, reports
from dresnet_jax.training import experiment

_NO_COMPILE = flags.DEFINE_bool(
    "no_compile", False, "Leave out what needs the compiler: FLOPs and memory."
)


def main() -> None:
    """Builds, compiles, prints."""
    config = cli.config()
    parts = experiment.build(config)
    params = parts.create_state(abstract=True).params
    print(reports.parameter_table(params))
    print(f"connections: {parts.connections_description}")
    report = {
        "model": config.model.name,
        "params": optax.tree.size(params),
        "num_steps": parts.num_steps,
        "batch_size": parts.recipe.batch_size,
    }
    if not _NO_COMPILE.value:
        program = cost.of(parts.compile_train_step())
        print(reports.cost_table(program))
        report |= {
            "flops_per_step": program.flops,
            "bytes_per_step": program.bytes_accessed,
            "temp_bytes": program.temp_bytes,
            "argument_bytes": program.argument_bytes,
        }
    print(f"{config.model.name}: {report['params']:,} parameters")
    cli.finish(report)


if __name__ == "__main__":
    cli.run(main, uses=("config", "no_compile", "json"))
