"""Measures what conditional paths save: FLOPs, and time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dresnet_jax import defaults
from dresnet_jax.costs import cost
from dresnet_jax.data import pipeline
from dresnet_jax.data.streaming import EvalBatches
from dresnet_jax.errors import UserError
from dresnet_jax.models import conditional, counting
from dresnet_jax.models.backbone import Backbone, uncompacted
from dresnet_jax.training import experiment
from dresnet_jax.training.experiment import Experiment
from dresnet_jax.training.state import TrainState

# Images of a batch, where no other number is given.
BATCH_SIZE = 256
# Of the batches that are timed; another sets the gates of a fresh network.
_BATCHES = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """A network whose gates let a share of the examples through.

    Savings are parts of what the same network without gates, which runs every block,
    needs.

    Attributes:
      rate: share that each gate was set to let through; None for the gates of a run.
      open_share: share of the pairs of an example and a gated block that are run.
      flops_saving: operations that the gates save, less those of the gates themselves.
      batch_flops_saving: of the batches that are run, each of one of a few sizes.
      time_saving: median over the rounds of the measured time's.
      time_saving_quartiles: the lower and the upper one of these.
      masked_time_saving: median where every block is run and its result masked.
      seconds: median of a batch.
      plain_seconds: median of a batch without gates.
    """

    rate: float | None
    open_share: float
    flops_saving: float
    batch_flops_saving: float
    time_saving: float
    time_saving_quartiles: tuple[float, float]
    masked_time_saving: float
    seconds: float
    plain_seconds: float

    @property
    def realised(self) -> float | None:
        """The time saving as a part of the FLOPs saving; None where none is saved."""
        return self.time_saving / self.flops_saving if self.flops_saving > 0 else None


@dataclasses.dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
      model: a network with gates.
      variables: of it, for each rate; None for the gates of a run.
      batches: normalised images, each [batch, height, width, channels].
    """

    model: Backbone
    variables: Mapping[float | None, Any]
    batches: Sequence[jax.Array]


def trained(exp: Experiment, state: TrainState, batch_size: int | None) -> Network:
    """Returns the network of a run, on images of the validation split.

    `batch_size` is of the batches that are measured; `BATCH_SIZE` for None, or the
    whole split where it has fewer images.

    Raises:
      UserError: the network has no gates, or the split has too few images.
    """
    examples = exp.open_splits()["validation"]
    batch_size = batch_size or min(BATCH_SIZE, len(examples))
    exp = _gated(defaults.replace(exp.config, {"data.batch_size": batch_size}))
    if len(examples) < batch_size:
        raise UserError(
            f"The validation split has {len(examples)} images: give a --batch_size "
            "that is not above it."
        )
    read = EvalBatches(examples, exp.recipe, np.arange(batch_size))
    batches = [
        pipeline.normalise(exp.recipe, jnp.asarray(read[n].images))
        for n in range(min(_BATCHES, len(examples) // batch_size))
    ]
    return Network(exp.model, {None: state.eval_variables}, batches)


def fresh(config: ml_collections.ConfigDict, rates: Sequence[float]) -> Network:
    """Makes a network that is not trained, on noise, its gates set to some rates.

    The biases of the gates are set by one batch; on the others that are measured the
    shares vary about the rate.

    Args:
      config: of a run.
      rates: shares of the examples that run each block, in (0, 1].

    Raises:
      UserError: a value of the config, or a rate, is wrong, or no block can have gates.
    """
    for rate in rates:
        if not 0 < rate <= 1:
            raise UserError(f"--rates: {rate} must be in (0, 1].")
    # Any: each rate is set by the biases.
    exp = _gated(defaults.replace(config, {"model.conditional.target_rate": 0.5}))
    size = exp.dataset.image_size
    shape = (config.data.batch_size, size, size, exp.dataset.channels)
    # Of several colours, since gates see what is left of an image on average.
    keys = jax.random.split(jax.random.key(config.seed), _BATCHES + 1)
    setting, *batches = [
        jax.random.normal(key, shape)
        + jax.random.normal(jax.random.fold_in(key, 0), (shape[0], 1, 1, shape[-1]))
        for key in keys
    ]
    variables = exp.create_state().variables
    logits = jax.jit(functools.partial(_logits, uncompacted(exp.model)))
    return Network(
        exp.model,
        {rate: _set(exp.model, logits, variables, setting, rate) for rate in rates},
        batches,
    )


def _gated(config: ml_collections.ConfigDict) -> Experiment:
    """The experiment of a config, on one device.

    Raises:
      UserError: a value of the config is wrong, or it has no gates.
    """
    exp = experiment.build(config, jax.devices()[:1])
    if not exp.model.spec.gated:
        raise UserError(
            "The run has no conditional paths: train it with "
            "--config.model.conditional.target_rate=."
        )
    return exp


def _logits(model: Backbone, variables: Any, images: jax.Array) -> dict[int, jax.Array]:
    """The logits of every gate: {block: [batch]}."""
    _, result = model.apply(variables, images, train=False, mutable=["intermediates"])
    gates = result["intermediates"]
    return {i: gates[f"gate_{i}"]["logits"][0] for i in model.spec.gated}


def _set(
    model: Backbone,
    logits: Callable[[Any, jax.Array], dict[int, jax.Array]],
    variables: Any,
    images: jax.Array,
    rate: float,
) -> Any:
    """The variables with biases by which each gate lets a share of images through."""
    params = dict(variables["params"])
    # One after the other, since a gate sees what those before it let through.
    for i in model.spec.gated:
        result = logits({**variables, "params": params}, images)[i]
        gate = params[f"gate_{i}"]
        bias = gate["logit"]["bias"]
        # 1 is above every logit of the other batches, too.
        shift = 1e3 if rate == 1 else -jnp.quantile(result, 1 - rate)
        params[f"gate_{i}"] = {**gate, "logit": {**gate["logit"], "bias": bias + shift}}
    return {**variables, "params": params}


def measure(network: Network, runs: int) -> list[Row]:
    """Counts and times the network at each rate and the same without gates.

    In each of the timed `runs` every program runs on all batches in turn.
    """
    model, batches = network.model, network.batches
    plain = model.clone(spec=dataclasses.replace(model.spec, conditional=None))
    some = next(iter(network.variables.values()))
    forms = {"plain": plain, "masked": uncompacted(model), "compacted": model}
    programs = {
        name: jax.jit(_forward(form)).lower(some, batches[0]).compile()
        for name, form in forms.items()
    }

    def run(name: str, variables: Any) -> None:
        # One batch is waited for before the next, as where each is evaluated by itself.
        for images in batches:
            jax.block_until_ready(programs[name](variables, images))

    timed = {("plain", None): functools.partial(run, "plain", some)} | {
        (name, rate): functools.partial(run, name, variables)
        for rate, variables in network.variables.items()
        for name in ("masked", "compacted")
    }
    seconds = cost.interleaved_seconds(timed, runs)
    flops = {
        name: counting.flops(_forward(forms[name]), some, batches[0])
        for name in ("plain", "masked")
    }
    of_blocks = block_flops(model, some, batches[0])
    logits = jax.jit(functools.partial(_logits, forms["masked"]))
    rows = []
    for rate, variables in network.variables.items():
        result = [logits(variables, images) for images in batches]
        counts = {
            i: np.array([int((of_gates[i] > 0).sum()) for of_gates in result])
            for i in model.spec.gated
        }
        savings, masked = (
            1 - seconds[name, rate] / seconds["plain", None]
            for name in ("compacted", "masked")
        )
        lower, upper = np.quantile(savings, (0.25, 0.75))
        shares = {i: n / len(batches[0]) for i, n in counts.items()}
        are_run = {i: _run_share(n, len(batches[0])) for i, n in counts.items()}
        rows.append(
            Row(
                rate=rate,
                open_share=float(np.mean(list(shares.values()))),
                flops_saving=_saving(flops, of_blocks, shares),
                batch_flops_saving=_saving(flops, of_blocks, are_run),
                time_saving=float(np.median(savings)),
                time_saving_quartiles=(float(lower), float(upper)),
                masked_time_saving=float(np.median(masked)),
                seconds=float(np.median(seconds["compacted", rate])) / len(batches),
                plain_seconds=float(np.median(seconds["plain", None])) / len(batches),
            )
        )
    return rows


def _forward(model: Backbone) -> Callable[[Any, jax.Array], Any]:
    return lambda variables, images: model.apply(variables, images, train=False)


def block_flops(model: Backbone, variables: Any, images: jax.Array) -> dict[int, float]:
    """Returns FLOPs of each gated block where it is run on a whole batch."""
    plain = model.clone(spec=dataclasses.replace(model.spec, conditional=None))
    jaxpr = jax.make_jaxpr(_forward(plain))(variables, images).jaxpr
    return {i: 2.0 * counting.in_jaxpr(jaxpr, f"block_{i}") for i in model.spec.gated}


def _run_share(needed: np.ndarray, batch: int) -> np.ndarray:
    """The share of a batch that is run where this many examples need it."""
    there = np.asarray(conditional.sizes(batch))
    return there[np.searchsorted(there, needed)] / batch


def _saving(
    flops: Mapping[str, float],
    of_blocks: Mapping[int, float],
    shares: Mapping[int, np.ndarray],
) -> float:
    """What is saved where each block runs a share of a batch, the gates counted."""
    skipped = sum(of_blocks[i] * (1 - share.mean()) for i, share in shares.items())
    return float(1 - (flops["masked"] - skipped) / flops["plain"])
