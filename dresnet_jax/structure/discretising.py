"""Mixed blocks ranked by their weights, and networks of the chosen operations."""

import dataclasses

import jax

from dresnet_jax.errors import UserError
from dresnet_jax.structure import pruning
from dresnet_jax.structure.pruning import Network


@dataclasses.dataclass(frozen=True)
class Choice:
    """The operations of a mixed block.

    Attributes:
      block: its number, from 1.
      operations: their names.
      weights: of each, their softmax at the temperature that training has come to.
    """

    block: int
    operations: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def chosen(self) -> str:
        """The operation of the largest weight; of equal ones, the first."""
        return self.operations[self.weights.index(max(self.weights))]


def choices(network: Network) -> list[Choice]:
    """Returns the weights of all mixed blocks, as evaluated.

    Raises:
      UserError: the network has none, or each image has weights of its own.
    """
    exp, state = network.experiment, network.state
    result = []
    for i, mixture in exp.model.spec.mixed.items():
        if mixture.weights == "routed":
            raise UserError(
                "mixture.weights = routed gives each image operations of its own, so "
                "that a block has no single one. See python -m dresnet_jax.analyze "
                "routes."
            )
        of_block = state.eval_params[f"block_{i}"]["mixture"]["gate_weights"]
        steps = state.batch_stats[f"block_{i}"]["mixture"]["steps"]
        weights = jax.nn.softmax(of_block / mixture.temperature_after(steps))
        result.append(Choice(i, mixture.operations, tuple(map(float, weights))))
    if not result:
        raise UserError(
            f"{exp.config.model.name} has no block with several operations."
        )
    return result


def discretised(network: Network, chosen: list[Choice]) -> Network:
    """Makes the network of the chosen operations alone, with their weights.

    Averaged weights are taken where there are; the optimiser restarts. What norms
    have averaged is as it was: see `pruning.measured`.
    """
    blocks = network.experiment.model.spec.blocks
    of_blocks = [block.mixture.operations for block in blocks]
    for one in chosen:
        of_blocks[one.block - 1] = (one.chosen,)
    fields = {"model.mixture.operations": tuple(of_blocks)}
    return pruning.decided(network, fields, network.state.eval_params)


def table(chosen: list[Choice]) -> str:
    """Returns a row per block: the operation that is left, and all weights."""
    lines = [f"{'block':>7s}  {'chosen':10s}weights"]
    for one in chosen:
        pairs = sorted(
            zip(one.weights, one.operations, strict=True), key=lambda pair: -pair[0]
        )
        weights = ", ".join(f"{name} {weight:.3f}" for weight, name in pairs)
        lines.append(f"{one.block:7d}  {one.chosen:10s}{weights}")
    return "\n".join(lines)
