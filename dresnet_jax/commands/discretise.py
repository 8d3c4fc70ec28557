r"""Leaves each mixed block the operation of its largest weight.

    python -m dresnet_jax.discretise --workdir=runs/mixed --to=runs/chosen

Writes a run of an ordinary, smaller network, whose config names one operation for each
block and whose parameters are those of the chosen ones: evaluate and predict read it,
and train --config.init.workdir= starts from it.
"""

import sys

from dresnet_jax.commands import cli

command = cli.Command(__doc__, "workdir compilation_cache json")

command.flag("to", str, "Directory of the run that is written.")


@command.main
def main() -> None:
    """Chooses, removes, writes."""
    directory = command.workdir()
    to = command.directory("to")

    from dresnet_jax.structure import discretising, pruning
    from dresnet_jax.training import evaluation, transfer

    command.use_compilation_cache()
    exp, restored = evaluation.open_run(directory)
    network = pruning.Network(exp, restored.state)
    chosen = discretising.choices(network)
    before = pruning.accuracy(network)
    smaller = pruning.measured(discretising.discretised(network, chosen))
    after = pruning.accuracy(smaller)
    about = {"discretised_from": str(directory), "step": restored.step}
    transfer.write_start(to, smaller.experiment.config, smaller.state, about)
    operations = tuple(
        b.mixture.operations for b in smaller.experiment.model.spec.blocks
    )
    print(discretising.table(chosen))
    print(f"validation accuracy {before:.4f} before, {after:.4f} after")
    print(transfer.how_to_train_on(to, "model.mixture.operations", operations))
    command.finish(
        {
            "workdir": str(directory),
            "to": str(to),
            "step": restored.step,
            "operations": operations,
            "weights": {
                one.block: dict(zip(one.operations, one.weights, strict=True))
                for one in chosen
            },
            "validation_accuracy": {"before": before, "after": after},
        }
    )


if __name__ == "__main__":
    sys.exit(command.run())
