"""From a config to everything a run is made of, each value checked on the way."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from dresnet_jax import defaults
from dresnet_jax.connections import gate_values
from dresnet_jax.data import calls, catalog, lookup, pipeline, sources
from dresnet_jax.data.calls import Call
from dresnet_jax.errors import pick
from dresnet_jax.models import backbone, counting, zoo
from dresnet_jax.models.backbone import Backbone
from dresnet_jax.training import (
    alternating,
    checks,
    compilation,
    inputs,
    optimizer,
    run_config,
    sharding,
    steps,
    transfer,
)
from dresnet_jax.training.inputs import Data, Divided, InputPipeline, Splits, StepInputs
from dresnet_jax.training.metrics import Metrics
from dresnet_jax.training.state import Programs, TrainState


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
      inputs: how examples reach them.
      num_steps: the run's length.
      steps_per_epoch: full batches in an epoch.
      programs: shared by experiments whose programs are the same.
    """

    config: ml_collections.ConfigDict
    dataset: catalog.Dataset
    recipe: pipeline.Recipe
    model: Backbone
    optimizer: optax.GradientTransformation
    mesh: Mesh
    inputs: InputPipeline
    num_steps: int
    steps_per_epoch: int
    optimizers: alternating.Optimizers | None = None
    programs: Programs = dataclasses.field(default_factory=Programs, init=False)

    def with_seed(self, seed: int) -> "Experiment":
        """Returns the same with another seed, which no program depends on."""
        return self.with_config(defaults.replace(self.config, {"seed": seed}))

    def with_config(self, config: ml_collections.ConfigDict) -> "Experiment":
        """Returns the same with a config whose programs are the same."""
        other = dataclasses.replace(self, config=config)
        object.__setattr__(other, "programs", self.programs)  # It is frozen.
        return other

    def open_splits(self) -> Splits:
        """Opens every split, as the input pipeline reads them.

        Raises:
          UserError: the dataset is not prepared, or is damaged.
          CorruptRecordError: an example cannot be read, and all are read at once.
        """
        data_dir = self.config.data.data_dir
        return self.inputs.open(sources.open_splits(self.dataset, data_dir))

    def open_data(self) -> Data:
        """Opens every split, and puts the training split in its place.

        Raises:
          UserError, CorruptRecordError: as `open_splits`.
        """
        return self.inputs.place(self.open_splits())

    def create_state(self, *, abstract: bool = False) -> TrainState:
        """Makes a fresh state, or its shapes, dtypes and shardings."""
        if self.programs.create_state is None:
            self.programs.create_state = self._creation()
        create, shapes = self.programs.create_state
        return shapes if abstract else create(jax.random.key(self.config.seed))

    def _creation(self) -> tuple[Callable[[jax.Array], TrainState], TrainState]:
        """From the key of a run to its state, by `sharding.RULES`; and its shapes."""
        size, channels = self.dataset.image_size, self.dataset.channels

        def init(key: jax.Array) -> TrainState:
            images = jnp.zeros((1, size, size, channels), jnp.float32)
            own_key = pipeline.derive_key(key, "init")
            variables = self.model.init(own_key, images, train=False)
            params = variables["params"]
            return TrainState(
                step=jnp.zeros((), jnp.int32),
                key=key,
                params=params,
                batch_stats=variables.get("batch_stats", {}),
                opt_state=self.optimizer.init(params),
                ema_params=params if self.config.train.ema_decay > 0 else None,
                running=Metrics.empty(),
                model=self.model,
                optimizer=self.optimizer,
            )

        # Only its shapes need the key's; JAX keeps the trace for the program below.
        shapes = jax.jit(init).eval_shape(jax.random.key(0))
        shapes = sharding.place_state(self.mesh, shapes)
        on_cpu = sharding.platform(self.mesh) == "cpu"
        program = jax.jit(
            init,
            out_shardings=jax.tree.map(lambda x: x.sharding, shapes),
            compiler_options=compilation.QUICK_ON_CPU if on_cpu else None,
        )
        return compilation.announce("the initialisation", program), shapes

    def batch(
        self,
        inputs: StepInputs,
        key: jax.Array,
        step: jax.Array,
        i: jax.Array | int = 0,
    ) -> pipeline.Batch:
        """Makes the augmented batch of the i-th step of a call, in a compiled program.

        `key` is that of the run, and `step` counts the steps done before.
        """
        batch = self.inputs.batch(inputs, key, step, jnp.asarray(i, jnp.int32))
        return self._over_devices(batch)

    def _over_devices(self, batch: pipeline.Batch) -> pipeline.Batch:
        return jax.lax.with_sharding_constraint(batch, sharding.split_batch(self.mesh))

    def loss(
        self, model: Backbone, params: Any, *given: Any
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Computes `steps.training_loss` with this run's settings."""
        train = self.config.train
        whole = sharding.gathered(self.mesh, params)
        return steps.training_loss(
            *(model, optimizer.without_gradients(self.config.optimizer, whole), *given),
            label_smoothing=train.label_smoothing,
            gate_penalty=train.gate_penalty,
        )

    @property
    def step(self) -> Callable[..., steps.Stepped]:
        """`steps.train_step` with this run's settings: (state, batch)."""
        train = self.config.train
        return functools.partial(
            steps.train_step,
            loss=self.loss,
            accumulate_steps=train.accumulate_steps,
            skip_non_finite=train.on_non_finite == "skip",
            ema_decay=train.ema_decay,
            log_every_steps=train.log_every_steps,
        )

    @property
    def _search_step(self) -> Callable[..., steps.Stepped]:
        """`alternating.step` with this run's settings: (state, batch, other)."""
        config = self.config
        assert self.optimizers is not None, "the training split is divided"
        rate = optimizer.schedule(config.optimizer, self.num_steps)
        return functools.partial(
            alternating.step,
            optimizers=self.optimizers,
            network_step=self.step,
            loss=self.loss,
            rate=rate if config.search.order == "second" else None,
            skip_non_finite=config.train.on_non_finite == "skip",
        )

    def compile_train_step(self, num_steps: int = 1) -> jax.stages.Compiled:
        """Compiles some steps, once: (state, `StepInputs`) to (state, `StepResult`).

        The program consumes the state. Its result has a leading axis of steps.
        """
        programs, key = self.programs.train, (1, num_steps)
        if key not in programs:
            programs[key] = self._compile_train_step(num_steps)
        return programs[key]

    def train_steps(self, num_steps: int) -> Callable[..., Any]:
        """Returns what `compile_train_step` compiles."""
        step, inputs_of = self.step, self.inputs

        def train_step(state: TrainState, inputs: StepInputs) -> steps.Stepped:
            def one(current: TrainState, i: jax.Array) -> steps.Stepped:
                place = inputs, current.key, current.step, i
                batch = self.batch(*place)
                if not isinstance(inputs_of, Divided):
                    return step(current, batch)
                other = self._over_devices(inputs_of.other_batch(*place))
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
        if self.programs.flops is None:
            self._trace_train_steps(1)
        assert self.programs.flops is not None, "they were counted with the trace"
        return self.programs.flops

    def _trace_train_steps(self, num_steps: int) -> jax.stages.Traced:
        abstract = self.create_state(abstract=True)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        place = sharding.replicated(self.mesh)
        program = jax.jit(
            self.train_steps(num_steps),
            donate_argnums=0,
            out_shardings=(shardings, place),
        )
        traced = program.trace(abstract, self.inputs.abstract(num_steps))
        self.programs.flops, self.programs.connection_flops = (
            2.0 * counting.in_jaxpr(traced.jaxpr, scope) / (num_steps * self.mesh.size)
            for scope in ("", "connections")
        )
        return traced

    def _compile_train_step(self, num_steps: int) -> jax.stages.Compiled:
        what = "the training step" if num_steps == 1 else f"{num_steps} training steps"
        with compilation.announced(what):
            return self._trace_train_steps(num_steps).lower().compile()

    def calls(self, start: int, until: int | None = None) -> Sequence[Call]:
        """Divides the steps from `start` to `until`, or the end, into calls."""
        train = self.config.train
        return calls.divided(
            start,
            self.num_steps if until is None else until,
            train.steps_per_call,
            ends=(self.steps_per_epoch, train.checkpoint_every_steps),
        )

    def gate_values(self, current: TrainState) -> gate_values.GateValues:
        """Returns F(w) of every edge, as evaluated: {reader: {source: F(w)}}."""
        spec = self.model.spec
        parameters = current.eval_params.get("connections", {})
        return gate_values.of(spec.connections, spec.channels, parameters)


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
    exp = _build(config, devices, device_bytes, dataset)
    fields = run_config.compiled_fields(config)
    key = exp.dataset, exp.inputs, exp.num_steps, fields
    for known, other in _recent:
        if known == key:
            return other.with_config(config)
    _recent.append((key, exp))
    return exp


def with_own_projections(
    config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
    """Gives each edge a projection of its own, if the config names none.

    Without one a new edge could not be silent: many gates are nowhere 0.
    """
    if config.model.connections.projection is not None:
        return config
    return defaults.replace(config, {"model.connections.projection": "per_edge"})


# What the programs of the newest experiments depend on, and those experiments.
_recent: collections.deque[tuple[Any, Experiment]] = collections.deque(maxlen=8)


def _build(
    config: ml_collections.ConfigDict,
    devices: Sequence[jax.Device] | None,
    device_bytes: int | None,
    dataset: catalog.Dataset | None,
) -> Experiment:
    checks.check(config)
    transfer.check(config)
    dataset = dataset or lookup.from_config(config.data)
    recipe = pipeline.Recipe.from_config(config.data, dataset)
    checks.check_data(config.data, dataset)
    axes, parts = config.sharding, config.train.accumulate_steps
    mesh = sharding.make_mesh(axes, recipe.batch_size, devices, parts)
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
    chosen: InputPipeline = inputs.choose(
        config.data, dataset, recipe, mesh, device_bytes or sharding.device_bytes()
    )
    num_examples = dataset.splits["train"]
    if share := config.search.share:
        chosen = inputs.divide(chosen, share, num_examples, recipe.batch_size)
        num_examples = chosen.count
    steps_per_epoch = recipe.steps_per_epoch(num_examples)
    num_steps = checks.num_steps(config.train, steps_per_epoch)
    is_gate = functools.partial(backbone.architecture, model.spec)
    learner = optimizer.build(
        config.optimizer,
        num_steps,
        is_gate,
        optimizer.event_steps(config.growth, steps_per_epoch),
        config.growth.warmup_steps,
    )
    both = None
    if share:
        freezing = optimizer.freezing(config.optimizer)
        both = alternating.optimizers(
            learner, config.search.learning_rate, is_gate, freezing
        )
    return Experiment(
        config=config,
        dataset=dataset,
        recipe=recipe,
        model=model,
        optimizer=both.joined if both else learner,
        optimizers=both,
        mesh=mesh,
        inputs=chosen,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
    )
