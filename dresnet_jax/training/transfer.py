"""A start from the weights of another run: a new head, other connections."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from dresnet_jax.errors import UserError
from dresnet_jax.training import checkpointing, leaves, workdir
from dresnet_jax.training.state import TrainState


def check(config: ml_collections.ConfigDict) -> None:
    """Checks `config.init` and `config.optimizer.freeze` as far as they can be alone.

    Raises:
      UserError: a pattern is no regular expression, or there is no run to start from.
    """
    for field, pattern in (
        ("init.skip", config.init.skip),
        ("optimizer.freeze", config.optimizer.freeze),
    ):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{field} = '{pattern}' is no regular expression: {error}."
            ) from error
    if config.init.workdir and not checkpointing.steps(_other(config.init)):
        raise UserError(f"init.workdir = {config.init.workdir} holds no checkpoint.")


def check_frozen(pattern: str, params: Any) -> None:
    """Checks that a pattern of frozen parameters names some, and not all.

    Raises:
      UserError: it does not.
    """
    names = list(leaves.by_name(params))
    frozen = [name for name in names if pattern and re.search(pattern, name)]
    if pattern and len(frozen) in (0, len(names)):
        parts = ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))
        raise UserError(
            f"optimizer.freeze = '{pattern}' names {'no' if not frozen else 'every'} "
            f"parameter. Their paths begin with {parts}."
        )


def start_from(
    config: ml_collections.ConfigDict, state: TrainState
) -> tuple[TrainState, str]:
    """Starts a fresh state from another run's weights, where leaves agree.

    Averaged parameters of the other run are taken where it has them. The optimiser
    starts from scratch. `config` is the part `init` of a config.

    Returns:
      The state, and lines for a person: how many leaves were taken, and the paths of
      those that only one of the runs has.

    Raises:
      UserError: a leaf has another shape there, or no leaf is the same.
    """
    here = leaves.by_name(state.variables)
    there, step = checkpointing.weight_shapes(_other(config))
    skipped = {path for path in here if config.skip and re.search(config.skip, path)}
    taken = [path for path in here if path in there and path not in skipped]
    for path in taken:
        if here[path].shape != there[path].shape:
            raise UserError(
                f"{path} is {there[path].shape} in {config.workdir} and "
                f"{here[path].shape} here: give a pattern that names it as "
                "config.init.skip, and it starts from scratch."
            )
    if not taken:
        raise UserError(f"No leaf of {config.workdir} is one of this model's.")
    places = {path: here[path].sharding for path in taken}
    result = checkpointing.load_weights(_other(config), step, places)
    lines = [f"weights: {len(taken)} leaves are those of step {step}"]
    lines += [f"  new here: {path}" for path in sorted(here.keys() - set(taken))]
    lines += [f"  only there: {path}" for path in sorted(there.keys() - here.keys())]
    return exchange(state, result), "\n".join(lines)


def exchange(state: TrainState, weights: Mapping[str, Any]) -> TrainState:
    """Returns a fresh state with some weights, and averages that start from them.

    Weights are by path, such as params/stem/conv/kernel; put where the leaves lie.
    """

    def placed(name: str, leaf: jax.Array) -> jax.Array:
        return jax.device_put(weights.get(name, leaf), leaf.sharding)

    result = leaves.map_by_name(placed, state.variables)
    if state.ema_params is not None:
        # Copies, since a step consumes each array of the state once.
        result["ema_params"] = jax.tree.map(lambda x: x.copy(), result["params"])
    return state.replace(**result)


def write_start(
    directory: epath.Path,
    config: ml_collections.ConfigDict,
    state: TrainState,
    about: Mapping[str, Any],
) -> None:
    """Makes a run directory that begins with a state, as step 0.

    `about` says where it comes from, in JSON's types.

    Raises:
      UserError: the directory cannot be written, or holds a run.
    """
    with workdir.claim(directory, config, overwrite=False):
        if checkpointing.steps(directory):
            raise UserError(f"{directory} holds a run: choose another directory.")
        keep = checkpointing.keep(1)
        with checkpointing.Checkpoints(directory, keep, about) as checkpoints:
            checkpoints.save_last(0, state)


def how_to_train_on(directory: epath.Path, field: str, value: object) -> str:
    """Returns the commands that start from what `write_start` wrote.

    The field of its config differs from that of the run it was made from.
    """
    # Without spaces, in quotes that stand inside those of a shell.
    written = str(value).replace(" ", "").replace("'", '"')
    return (
        "to train on: the run's own command in another --workdir, with\n"
        f"  --config.init.workdir={directory} \\\n"
        f"  --config.{field}='{written}'"
    )


def _other(config: ml_collections.ConfigDict) -> epath.Path:
    return epath.Path(config.workdir).expanduser()
