"""Reports which connections a network has, and what they add to it."""

from absl import logging

from dresnet_jax.connections.spec import MAX_GROWTH
from dresnet_jax.models import zoo
from dresnet_jax.training import processes, sharding
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import num_parameters

# Share of a plain network's parameters or FLOPs above which connections are warned of.
_MUCH_ADDED = 0.1


def description(experiment: Experiment) -> str:
    """Returns how many connections there are, and how their sum is computed."""
    spec, asked = (
        experiment.model.spec.connections,
        experiment.config.model.connections.form,
    )
    if not spec.topology.edges:
        return "none"
    why = ""
    if asked == zoo.AUTOMATIC:
        platform = sharding.platform(experiment.mesh)
        _, reason = zoo.chosen_form(experiment.model.spec, platform)
        why = f", chosen since {reason}"
    narrow = spec.projection == "between_stages"
    rank = f" of rank {spec.projection_rank}" if narrow else ""
    return (
        f"{len(spec.topology.edges)}, projection '{spec.projection}'{rank}, "
        f"form '{spec.form}'{why}"
    )


def print_cost(experiment: Experiment) -> None:
    """Prints what connections add, and warns where it is more than a tenth."""
    if not experiment.model.spec.connections.topology.edges:
        return
    params, flops = cost(experiment)
    text = f"connections add {100 * params:.1f} % to the parameters"
    if flops is not None:
        text += f" and {100 * flops:.1f} % to the FLOPs of a step"
    processes.say(text)
    growth = experiment.model.spec.connections.start_growth
    if growth > 2 * MAX_GROWTH:
        logging.warning(
            "At the start images may grow by a factor of up to %.3g in a stage: "
            "model.connections.opening=bounded keeps that at %g.",
            growth,
            MAX_GROWTH,
        )
    if max(params, flops or 0.0) > _MUCH_ADDED:
        logging.warning(
            "More than %.0f %%: model.connections.projection=between_stages, a "
            "smaller projection_rank and topology=stage_ends cost less.",
            100 * _MUCH_ADDED,
        )


def cost(experiment: Experiment) -> tuple[float, float | None]:
    """Returns what connections add to the parameters and FLOPs of the plain network.

    As shares of what that has. The second is None in the form `stacked`, which also
    computes the blocks twice.
    """
    params = experiment.create_state(abstract=True).params
    own = num_parameters(params.get("connections", {}))
    more_params = own / (num_parameters(params) - own)
    if experiment.model.spec.connections.form == "stacked":
        return more_params, None
    in_all = experiment.step_flops
    own_flops = experiment.programs.connection_flops or 0.0
    return more_params, own_flops / (in_all - own_flops)
