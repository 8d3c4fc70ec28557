"""From a config to everything a run is made of, each value checked on the way."""

import collections
import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import logging
from jax.sharding import Mesh

from dresnet_jax.connections import module as connections
from dresnet_jax.connections.spec import MAX_GROWTH
from dresnet_jax.data import catalog, images, lookup, pipeline, sources, views
from dresnet_jax.data.streaming import Call, SingleSteps
from dresnet_jax.errors import UserError, pick
from dresnet_jax.models import counting, zoo
from dresnet_jax.models.backbone import Backbone
from dresnet_jax.training import (
    alternating,
    compilation,
    divided_road,
    optimizer,
    processes,
    roads,
    sharding,
    steps,
    transfer,
    workdir,
)
from dresnet_jax.training import state as train_state
from dresnet_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run.

    Attributes:
      config: what they were made from.
      dataset: what the dataset is.
      recipe: how batches are made.
      model: the network.
      optimizer: the optax transformation.
      optimizers: its parts, where architecture and network learn in turn.
      mesh: the devices.
      road: how examples reach them.
      num_steps: the run's length.
      steps_per_epoch: full batches in an epoch.
      programs: what has been compiled, for all configs that share it.
    """

    config: ml_collections.ConfigDict
    dataset: catalog.Dataset
    recipe: pipeline.Recipe
    model: Backbone
    optimizer: optax.GradientTransformation
    mesh: Mesh
    road: roads.Road
    num_steps: int
    steps_per_epoch: int
    optimizers: alternating.Optimizers | None = None
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False)

    def with_seed(self, seed: int) -> "Experiment":
        """The same with another seed, which no program depends on."""
        config = copy.deepcopy(self.config).unlock()
        config.seed = seed
        return self._of(config.lock())

    def _of(self, config: ml_collections.ConfigDict) -> "Experiment":
        """The same of a config that has the same programs."""
        other = dataclasses.replace(self, config=config)
        object.__setattr__(other, "programs", self.programs)  # It is frozen.
        return other

    @property
    def eval_every_steps(self) -> int:
        """Steps between two evaluations on the validation split."""
        return self.config.train.eval_every_epochs * self.steps_per_epoch

    def open_splits(self) -> roads.Splits:
        """The examples of every split, as the road reads them.

        Raises:
          UserError: the dataset is not prepared, or is damaged.
          CorruptRecordError: an example cannot be read, and the road reads them all.
        """
        data_dir = self.config.data.data_dir
        return self.road.open(sources.open_splits(self.dataset, data_dir))

    def create_state(self, *, abstract: bool = False) -> TrainState:
        """A fresh state, or its shapes, dtypes and shardings."""
        if "create_state" not in self.programs:
            size = self.dataset.image_size
            self.programs["create_state"] = train_state.creation(
                self.model,
                self.optimizer,
                image_shape=(size, size, self.dataset.channels),
                averaged=self.config.train.ema_decay > 0,
                mesh=self.mesh,
            )
        create, shapes = self.programs["create_state"]
        return shapes if abstract else create(jax.random.key(self.config.seed))

    def is_finite(self, state: TrainState) -> bool:
        """Whether a state is worth keeping: it holds no number that is not finite."""
        if "is_finite" not in self.programs:
            self.programs["is_finite"] = train_state.check(self.mesh)
        found: bool = self.programs["is_finite"](state)
        return found

    def read(self, params: Any) -> Any:
        """Parameters as the loss reads them: whole, without gradients where frozen."""
        whole = sharding.gathered(self.mesh, params)
        return optimizer.without_gradients(self.config.optimizer, whole)

    @property
    def step(self) -> Callable[..., tuple[TrainState, steps.StepResult]]:
        """`steps.train_step` with this run's settings: (state, batch)."""
        train = self.config.train
        return functools.partial(
            steps.train_step,
            accumulate_steps=train.accumulate_steps,
            skip_non_finite=train.on_non_finite == "skip",
            read=self.read,
            label_smoothing=train.label_smoothing,
            gate_penalty=train.gate_penalty,
            ema_decay=train.ema_decay,
            log_every_steps=train.log_every_steps,
        )

    def _search_step(
        self, state: TrainState, batch: pipeline.Batch, other: pipeline.Batch
    ) -> tuple[TrainState, steps.StepResult]:
        """`alternating.step` with this run's settings."""
        search, train = self.config.search, self.config.train
        assert self.optimizers is not None, "the road is divided"
        rate = None
        if search.order == "second":
            rate = optimizer.schedule(self.config.optimizer, self.num_steps)
        return alternating.step(
            *(state, batch, other),
            optimizers=self.optimizers,
            network_step=self.step,
            rate=rate,
            label_smoothing=train.label_smoothing,
            gate_penalty=train.gate_penalty,
            skip_non_finite=train.on_non_finite == "skip",
            read=self.read,
        )

    def compile_train_step(self, num_steps: int = 1) -> jax.stages.Compiled:
        """The program of some steps, compiled once: (state, *data of the road).

        Consumes the state. Returns the next one, and a `steps.StepResult` with a
        leading axis of steps.
        """
        if num_steps not in self.programs:
            self.programs[num_steps] = self._compile_train_step(num_steps)
        return self.programs[num_steps]

    def train_steps(self, num_steps: int) -> Callable[..., Any]:
        """What `compile_train_step` compiles."""
        step, road = self.step, self.road
        over_devices = sharding.split_batch(self.mesh)

        def train_step(
            state: TrainState, *data: jax.Array
        ) -> tuple[TrainState, steps.StepResult]:
            def one(
                current: TrainState, i: jax.Array
            ) -> tuple[TrainState, steps.StepResult]:
                place = data, current.key, current.step, i
                batch = road.batch(*place)
                batch = jax.lax.with_sharding_constraint(batch, over_devices)
                if not isinstance(road, divided_road.Divided):
                    return step(current, batch)
                other = road.other_batch(*place)
                other = jax.lax.with_sharding_constraint(other, over_devices)
                return self._search_step(current, batch, other)

            if num_steps == 1:
                # Outside a loop, where the convolutions of a CPU are much faster.
                state, result = one(state, jnp.zeros((), jnp.int32))
                return state, jax.tree.map(lambda x: x[None], result)
            return jax.lax.scan(one, state, jnp.arange(num_steps))

        return train_step

    @property
    def step_flops(self) -> float:
        """FLOPs of a training step on each device, as `counting.flops` counts them."""
        if "flops" not in self.programs:
            self._trace_train_steps(1)
        return self.programs["flops"]

    def _trace_train_steps(self, num_steps: int) -> jax.stages.Traced:
        abstract = self.create_state(abstract=True)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        place = sharding.replicated(self.mesh)
        program = jax.jit(
            self.train_steps(num_steps),
            donate_argnums=0,
            out_shardings=(shardings, place),
        )
        traced = program.trace(abstract, *self.road.abstract(num_steps))
        devices_steps = num_steps * self.mesh.size
        for name, scope in (("flops", ""), ("connection_flops", "connections")):
            in_all = 2.0 * counting.in_jaxpr(traced.jaxpr, scope)
            self.programs[name] = in_all / devices_steps
        return traced

    def _compile_train_step(self, num_steps: int) -> jax.stages.Compiled:
        what = "the training step" if num_steps == 1 else f"{num_steps} training steps"
        with compilation.announced(what):
            return self._trace_train_steps(num_steps).lower().compile()

    def calls(self, start: int, until: int | None = None) -> Sequence[Call]:
        """The steps after `start`, by how many are dispatched together.

        No call goes past the end of an epoch, a checkpoint or the end of the run; the
        steps left over before one are dispatched one by one.

        Args:
          start: steps done.
          until: the last step; None for that of the run.
        """
        train = self.config.train
        end = self.num_steps if until is None else until
        if train.steps_per_call == 1:
            return SingleSteps(start, end)
        calls = []
        while start < end:
            stop = min(
                end,
                _next_multiple(start, self.steps_per_epoch),
                _next_multiple(start, train.checkpoint_every_steps),
            )
            for steps_per_call in (train.steps_per_call, 1):
                while start + steps_per_call <= stop:
                    calls.append(Call(start, steps_per_call))
                    start += steps_per_call
        return calls

    @property
    def connections_description(self) -> str:
        """How many there are, and how their sum is computed."""
        spec, asked = self.model.spec.connections, self.config.model.connections.form
        if not spec.topology.edges:
            return "none"
        why = ""
        if asked == zoo.AUTOMATIC:
            platform = sharding.platform(self.mesh)
            _, reason = zoo.chosen_form(self.model.spec, platform)
            why = f", chosen since {reason}"
        narrow = spec.projection == "between_stages"
        rank = f" of rank {spec.projection_rank}" if narrow else ""
        return (
            f"{len(spec.topology.edges)}, projection '{spec.projection}'{rank}, "
            f"form '{spec.form}'{why}"
        )

    def print_connections_cost(self) -> None:
        """Prints what connections add, and warns where it is more than a tenth."""
        if not self.model.spec.connections.topology.edges:
            return
        params, flops = self.connections_cost
        text = f"connections add {100 * params:.1f} % to the parameters"
        if flops is not None:
            text += f" and {100 * flops:.1f} % to the FLOPs of a step"
        processes.say(text)
        growth = self.model.spec.connections.start_growth
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

    @property
    def connections_cost(self) -> tuple[float, float | None]:
        """What connections add to the plain network: to parameters, to FLOPs.

        As shares of what that has. The second is None in the form `stacked`, which
        also computes the blocks twice.
        """
        params = self.create_state(abstract=True).params
        own = num_parameters(params.get("connections", {}))
        more_params = own / (num_parameters(params) - own)
        if self.model.spec.connections.form == "stacked":
            return more_params, None
        in_all = self.step_flops
        own_flops = self.programs["connection_flops"]
        return more_params, own_flops / (in_all - own_flops)

    def gate_openings(self, current: TrainState) -> connections.Openings:
        """F(w) of every edge, as evaluated: {reader: {source: opening}}."""
        spec = self.model.spec
        parameters = current.eval_params.get("connections", {})
        return connections.openings(spec.connections, spec.channels, parameters)


# Share of a plain network's parameters or FLOPs above which connections are warned of.
_MUCH_ADDED = 0.1
# Larger than any image here; and what counts steps is an int32.
_MOST_PIXELS = 2**15
_MOST_STEPS = 2**31 - 1


def num_parameters(params: Any) -> int:
    """How many numbers a tree of arrays has, or of shapes, which optax leaves out."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def build(
    config: ml_collections.ConfigDict,
    devices: Sequence[jax.Device] | None = None,
    device_bytes: int | None = None,
    dataset: catalog.Dataset | None = None,
) -> Experiment:
    """Makes and checks every part; writes nothing and allocates nothing.

    Programs that were compiled for a recent experiment are used again where no field
    that they depend on has changed, so that a process traces and compiles each once.

    Args:
      config: of the run.
      devices: all that there are, if None.
      device_bytes: memory of each; None to ask the first one here.
      dataset: what the run was trained on; None for what the config names today.

    Raises:
      UserError: a value of the config is wrong.
    """
    if "connections" in config.growth.events:
        config = with_own_projections(config)
    parts = _build(config, devices, device_bytes, dataset)
    key = parts.dataset, parts.road, parts.num_steps, _compiled_fields(config)
    for known, other in _recent:
        if known == key:
            return other._of(config)
    _recent.append((key, parts))
    return parts


def with_own_projections(
    config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
    """The config with a projection for each edge, if it leaves that to the model.

    Without one a new edge could not be silent: many gates are nowhere 0.
    """
    if config.model.connections.projection is not None:
        return config
    found = copy.deepcopy(config).unlock()
    found.model.connections.projection = "per_edge"
    return found.lock()


# What the programs of the newest experiments depend on, and those experiments.
_recent: collections.deque[tuple[Any, Experiment]] = collections.deque(maxlen=8)


# Fields of `config.train` that only the host reads, beside the length of the run.
_HOST_FIELDS = (
    *("num_steps", "num_epochs", "steps_per_call", "eval_every_epochs", "report_on"),
    *("checkpoint_every_steps", "keep_checkpoints", "keep_every_steps", "keep_best"),
)


def _compiled_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields of a config that programs may depend on, besides the run's length."""
    # As JSON has it: a config that was read from a checkpoint has lists for tuples.
    found = workdir.plain(config)
    for name in ("seed", "init", "evolution"):
        del found[name]
    if not config.growth.warmup_steps:
        del found["growth"]
    for name in _HOST_FIELDS:
        del found["train"][name]
    return found


def _build(
    config: ml_collections.ConfigDict,
    devices: Sequence[jax.Device] | None,
    device_bytes: int | None,
    dataset: catalog.Dataset | None,
) -> Experiment:
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed = {config.seed} must be between 0 and 2**32 - 1.")
    _check_numbers(config, "")
    transfer.check(config)
    dataset = dataset or lookup.from_config(config.data)
    recipe = pipeline.Recipe(
        batch_size=config.data.batch_size,
        mean=dataset.mean,
        std=dataset.std,
        crop_padding=config.data.crop_padding,
        flip=config.data.flip,
        cut_out=config.data.cut_out,
        mix_up=config.data.mix_up,
        cut_mix=config.data.cut_mix,
        num_classes=dataset.num_classes,
        view=views.View(
            size=dataset.image_size,
            channels=dataset.channels,
            fixed_size=dataset.fixed_size,
            min_crop_area=config.data.min_crop_area,
            rand_augment_layers=config.data.rand_augment_layers,
            rand_augment_magnitude=config.data.rand_augment_magnitude,
            rule=config.data.pixel_rule,
            background=config.data.background,
        ),
        skip_corrupt=config.data.skip_corrupt,
    )
    _check_data(config.data, dataset)
    mesh = sharding.make_mesh(config.sharding, recipe.batch_size, devices)
    parts = mesh.size * config.train.accumulate_steps
    if config.train.accumulate_steps > 0 and recipe.batch_size % parts:
        raise UserError(
            f"data.batch_size = {recipe.batch_size} is not divisible by {mesh.size} "
            f"devices x train.accumulate_steps = {config.train.accumulate_steps}."
        )
    norms = {"global": 1, "per_shard": mesh.size}
    shards = pick("sharding.batch_norm", config.sharding.batch_norm, norms)
    model = zoo.build(
        config.model,
        dataset.image_size,
        dataset.num_classes,
        shards,
        sharding.platform(mesh),
        mesh.size,
        config.optimizer.freeze if config.optimizer.freeze_statistics else "",
    )
    alternating.check(config, model.spec)
    road = roads.choose(
        config.data, dataset, recipe, mesh, device_bytes or sharding.device_bytes()
    )
    num_examples = dataset.splits["train"]
    if share := config.search.share:
        divided = divided_road.divide(road, share, num_examples, recipe.batch_size)
        road, num_examples = divided, divided.count
    steps_per_epoch = recipe.steps_per_epoch(num_examples)
    num_steps = _num_steps(config.train, steps_per_epoch)
    learner = optimizer.build(
        config.optimizer,
        num_steps,
        event_steps(config.growth, steps_per_epoch),
        config.growth.warmup_steps,
    )
    both = None
    if share:
        freeze = config.optimizer.freeze
        is_frozen = functools.partial(optimizer.frozen, config.optimizer)
        both = alternating.optimizers(
            learner, config.search.learning_rate, is_frozen if freeze else None
        )
    return Experiment(
        config=config,
        dataset=dataset,
        recipe=recipe,
        model=model,
        optimizer=both.joined if both else learner,
        optimizers=both,
        mesh=mesh,
        road=road,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
    )


def event_steps(growth: ml_collections.ConfigDict, steps_per_epoch: int) -> list[int]:
    """The steps behind which a run's network changes."""
    return [
        number * growth.every_epochs * steps_per_epoch
        for number in range(1, len(growth.events) + 1)
    ]


def _next_multiple(step: int, every: int) -> int:
    return (step // every + 1) * every


def _check_numbers(group: ml_collections.ConfigDict, path: str) -> None:
    """Checks that every number of a config is one, and not above what arrays count."""
    for name, value in group.items():
        if isinstance(value, ml_collections.ConfigDict):
            _check_numbers(value, f"{path}{name}.")
            continue
        several = value if isinstance(value, list | tuple) else (value,)
        for number in several:
            is_huge = isinstance(number, int) and not abs(number) < 2**32
            is_none = isinstance(number, float) and not math.isfinite(number)
            if is_huge or is_none:
                raise UserError(
                    f"{path}{name} = {value} must be finite, and whole numbers below "
                    "2**32."
                )


def _check_data(data: ml_collections.ConfigDict, dataset: catalog.Dataset) -> None:
    """Checks the fields of `config.data` that say how batches are made and read."""
    if data.rand_augment_layers and dataset.channels not in (1, 3):
        raise UserError(
            f"data.rand_augment_layers = {data.rand_augment_layers} needs images of 1 "
            f"or 3 channels; {dataset.name} has {dataset.channels}."
        )
    limits = {
        "crop_padding": (0, _MOST_PIXELS),
        "cut_out": (0, _MOST_PIXELS),
        "background": (0, 255),
        "pixel_rule": (1, images.RULE),
        "mix_up": (0, math.inf),
        "cut_mix": (0, math.inf),
        "min_crop_area": (0, 1),
        "rand_augment_layers": (0, 100),
        "rand_augment_magnitude": (0, 10),
        "num_threads": (1, 10_000),
        "num_workers": (0, 10_000),
    }
    for field, (low, high) in limits.items():
        value = data[field]
        if not low <= value <= high or value == math.inf:
            most = "" if high == math.inf else f" and not above {high}"
            raise UserError(
                f"data.{field} = {value} must be a number, not below {low}{most}."
            )


def _num_steps(train: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """The run's length, and the checks of the other fields of `config.train`."""
    for field in (
        "log_every_steps",
        "checkpoint_every_steps",
        "eval_every_epochs",
        "keep_checkpoints",
        "steps_per_call",
        "accumulate_steps",
    ):
        _check_steps(train, field, 1)
    for field in ("keep_every_steps", "keep_best"):
        _check_steps(train, field, 0)
    pick("train.on_non_finite", train.on_non_finite, dict.fromkeys(("stop", "skip")))
    pick("train.report_on", train.report_on, dict.fromkeys(("last", "best")))
    if train.report_on == "best" and not train.keep_best:
        raise UserError("train.report_on = best needs a train.keep_best above 0.")
    if train.steps_per_call > train.log_every_steps:
        raise UserError(
            f"train.steps_per_call = {train.steps_per_call} must not be above "
            f"train.log_every_steps = {train.log_every_steps}."
        )
    for field in ("label_smoothing", "ema_decay"):
        if not 0 <= train[field] < 1:
            raise UserError(f"train.{field} = {train[field]} must be in [0, 1).")
    if not 0 <= train.gate_penalty < math.inf:
        raise UserError(
            f"train.gate_penalty = {train.gate_penalty} must be a number, not below 0."
        )
    if train.num_steps is not None:
        num_steps = train.num_steps
    elif train.num_epochs is not None:
        if not 0 < train.num_epochs < _MOST_STEPS:
            raise UserError(
                f"train.num_epochs = {train.num_epochs} must be a number above 0."
            )
        num_steps = math.ceil(train.num_epochs * steps_per_epoch)
    else:
        raise UserError("train.num_steps or train.num_epochs must be set.")
    if not 1 <= num_steps <= _MOST_STEPS:
        raise UserError(
            f"train.num_steps = {train.num_steps}, train.num_epochs = "
            f"{train.num_epochs}: the run must have from 1 to {_MOST_STEPS} steps."
        )
    return num_steps


def _check_steps(train: ml_collections.ConfigDict, field: str, least: int) -> None:
    if not least <= train[field] <= _MOST_STEPS:
        raise UserError(
            f"train.{field} = {train[field]} must be from {least} to {_MOST_STEPS}."
        )
