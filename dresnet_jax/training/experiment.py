"""From a config to everything a run is made of, each value checked on the way."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from dresnet_jax.connections import module as connections
from dresnet_jax.data import catalog, pipeline
from dresnet_jax.errors import UserError
from dresnet_jax.models import zoo
from dresnet_jax.models.backbone import Backbone
from dresnet_jax.training import optimizer, sharding, state, steps


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run.

    Attributes:
      config: what they were made from.
      dataset: what the dataset is.
      recipe: how batches are made.
      model: the network.
      optimizer: the optax transformation.
      mesh: the devices.
      num_steps: the run's length.
      steps_per_epoch: full batches in an epoch.
    """

    config: ml_collections.ConfigDict
    dataset: catalog.Dataset
    recipe: pipeline.Recipe
    model: Backbone
    optimizer: optax.GradientTransformation
    mesh: Mesh
    num_steps: int
    steps_per_epoch: int

    @property
    def eval_every_steps(self) -> int:
        """Steps between two evaluations on the validation split."""
        return self.config.train.eval_every_epochs * self.steps_per_epoch

    def create_state(self, *, abstract: bool = False) -> state.TrainState:
        """A fresh state, or its shapes, dtypes and shardings."""
        dataset = self.dataset
        return state.create(
            self.model,
            self.optimizer,
            seed=self.config.seed,
            image_shape=(dataset.image_size, dataset.image_size, dataset.channels),
            averaged=self.config.train.ema_decay > 0,
            mesh=self.mesh,
            abstract=abstract,
        )

    @property
    def step(self) -> steps.TrainStep:
        """`steps.train_step` with this run's settings: (state, batch)."""
        train = self.config.train
        return functools.partial(
            steps.train_step,
            label_smoothing=train.label_smoothing,
            ema_decay=train.ema_decay,
            log_every_steps=train.log_every_steps,
        )

    def compile_train_step(self) -> jax.stages.Compiled:
        """The program of a step, compiled once: (state, images, labels, order).

        Takes the state, which it consumes, the whole training split as uint8 images
        and int32 labels, and the epoch's order. Returns the next state and a
        `steps.StepResult`.
        """
        step = self.step
        over_devices = sharding.split_batch(self.mesh)

        def train_step(
            state: state.TrainState,
            images: jax.Array,
            labels: jax.Array,
            order: jax.Array,
        ) -> tuple[state.TrainState, steps.StepResult]:
            batch = pipeline.train_batch(
                self.recipe, images, labels, order, state.key, state.step
            )
            return step(state, jax.lax.with_sharding_constraint(batch, over_devices))

        dataset = self.dataset
        examples = dataset.splits["train"]
        side = dataset.image_size
        split = (
            jax.ShapeDtypeStruct((examples, side, side, dataset.channels), jnp.uint8),
            jax.ShapeDtypeStruct((examples,), jnp.int32),
            jax.ShapeDtypeStruct((examples,), jnp.int32),
        )
        place = sharding.replicated(self.mesh)
        abstract = self.create_state(abstract=True)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        return (
            jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, place))
            .lower(abstract, *sharding.abstract(split, place))
            .compile()
        )

    def gate_openings(self, current: state.TrainState) -> connections.Openings:
        """F(w) of every edge, as evaluated: {reader: {source: opening}}."""
        spec = self.model.spec
        parameters = current.eval_params.get("connections", {})
        return connections.openings(spec.connections, spec.channels, parameters)


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Makes and checks every part; writes nothing and allocates nothing.

    Raises:
      UserError: a value of the config is wrong.
    """
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed = {config.seed} must be between 0 and 2**32 - 1.")
    dataset = catalog.lookup(config.data)
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
    )
    for field in ("crop_padding", "cut_out", "mix_up", "cut_mix"):
        if not 0 <= config.data[field] < math.inf:
            raise UserError(
                f"data.{field} = {config.data[field]} must be a number, not below 0."
            )
    steps_per_epoch = recipe.steps_per_epoch(dataset.splits["train"])
    num_steps = _num_steps(config.train, steps_per_epoch)
    return Experiment(
        config=config,
        dataset=dataset,
        recipe=recipe,
        model=zoo.build(config.model, dataset.image_size, dataset.num_classes),
        optimizer=optimizer.build(config.optimizer, num_steps),
        mesh=sharding.make_mesh(recipe.batch_size),
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
    )


def _num_steps(train: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """The run's length, and the checks of the other fields of `config.train`."""
    for field in (
        "log_every_steps",
        "checkpoint_every_steps",
        "eval_every_epochs",
        "keep_checkpoints",
    ):
        if train[field] < 1:
            raise UserError(f"train.{field} = {train[field]} must be above 0.")
    for field in ("label_smoothing", "ema_decay"):
        if not 0 <= train[field] < 1:
            raise UserError(f"train.{field} = {train[field]} must be in [0, 1).")
    if train.num_steps is not None:
        num_steps = train.num_steps
    elif train.num_epochs is not None:
        num_steps = math.ceil(train.num_epochs * steps_per_epoch)
    else:
        raise UserError("train.num_steps or train.num_epochs must be set.")
    if num_steps < 1:
        raise UserError(
            f"train.num_steps = {train.num_steps}, train.num_epochs = "
            f"{train.num_epochs}: the run must have at least one step."
        )
    return num_steps
