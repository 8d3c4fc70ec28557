r"""Removes the learned connections that carry least.

    python -m dresnet_jax.prune --workdir=runs/digits --to=runs/pruned --keep=7
    python -m dresnet_jax.prune --workdir=runs/digits --to=runs/pruned --max_loss=0.002

Ranks the connections of a run by the root mean square of what they carry, F(w) P(y),
and writes a run of an ordinary, smaller network, whose config lists the connections
that are left: evaluate and predict read it, and train --config.init.workdir= starts
from it. --keep leaves this many; --threshold those that carry at least this much;
--max_loss removes as many as accuracy on the validation split allows.
"""

import functools
import sys
from typing import TYPE_CHECKING

from dresnet_jax.commands import cli
from dresnet_jax.errors import UserError

if TYPE_CHECKING:
    from dresnet_jax.structure import pruning

command = cli.Command(__doc__, "workdir compilation_cache json")

command.flag("to", str, "Directory of the run that is written.")
_KEEP = command.flag("keep", int, "How many connections are left.")
_THRESHOLD = command.flag(
    "threshold", float, "What a connection that is left carries at least."
)
_MAX_LOSS = command.flag(
    "max_loss", float, "Share of the validation images by which accuracy may fall."
)


@command.main
def main() -> None:
    """Ranks, removes, writes."""
    directory = command.workdir()
    to = command.directory("to")
    chosen = [flag for flag in (_KEEP, _THRESHOLD, _MAX_LOSS) if flag.value is not None]
    if len(chosen) != 1:
        raise UserError("Give one of --keep, --threshold and --max_loss. See --help.")
    threshold, max_loss = _THRESHOLD.value, _MAX_LOSS.value
    if threshold is not None and not threshold >= 0:
        raise UserError(f"--threshold={threshold} must not be below 0.")
    if max_loss is not None and not 0 <= max_loss < 1:
        raise UserError(f"--max_loss={max_loss} must be in [0, 1).")

    from dresnet_jax.structure import pruning
    from dresnet_jax.training import evaluation, transfer

    command.use_compilation_cache()
    exp, restored = evaluation.open_run(directory)
    network = pruning.Network(exp, restored.state)
    ranking = pruning.ranked(network)
    before = pruning.accuracy(network)
    smaller = pruning.pruned(network, _left(network, ranking, before))
    was, graph = (
        one.experiment.model.spec.connections.topology for one in (network, smaller)
    )
    edges, gone = graph.edges, sorted(set(was.blocks) - set(graph.blocks))
    after = pruning.accuracy(smaller)
    about = {"pruned_from": str(directory), "step": restored.step}
    transfer.write_start(to, smaller.experiment.config, smaller.state, about)
    print(pruning.table(ranking, edges))
    print(
        f"{len(edges)} of {len(ranking)} connections are left; validation accuracy "
        f"{before:.4f} before, {after:.4f} after"
    )
    if gone:
        print(f"blocks that go with their connections: {gone}")
    topology = smaller.experiment.config.model.connections.topology
    print(transfer.how_to_train_on(to, "model.connections.topology", topology))
    command.finish(
        {
            "workdir": str(directory),
            "to": str(to),
            "step": restored.step,
            "edges": sorted(edges),
            "removed_blocks": gone,
            "removed": sorted(c.edge for c in ranking if c.edge not in edges),
            "validation_accuracy": {"before": before, "after": after},
        }
    )


def _left(
    network: "pruning.Network", ranking: "list[pruning.RankedEdge]", before: float
) -> "list[pruning.Edge]":
    """The connections that are left, by the flag that was given."""
    from dresnet_jax.structure import pruning

    keep, threshold, max_loss = _KEEP.value, _THRESHOLD.value, _MAX_LOSS.value
    if keep is not None:
        if not 0 <= keep <= len(ranking):
            raise UserError(
                f"--keep={keep} must be from 0 to the {len(ranking)} connections that "
                "there are."
            )
        return [one.edge for one in ranking[len(ranking) - keep :]]
    if threshold is not None:
        return [c.edge for c in ranking if c.strength >= threshold]
    accuracy = functools.partial(pruning.accuracy_with, network)
    return pruning.most_removed(ranking, accuracy, before - max_loss)


if __name__ == "__main__":
    sys.exit(command.run())
