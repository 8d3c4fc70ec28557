"""What learned connections cost, beside the same network without them."""

import copy
import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from dresnet_jax.analysis import chips, cost, traffic
from dresnet_jax.connections.module import FORMS
from dresnet_jax.data import pipeline
from dresnet_jax.errors import UserError, pick
from dresnet_jax.training import experiment, sharding, steps

# The network without connections: every block by itself, and its stages under a scan
# that keeps the blocks' inputs alone, as the form `stacked` does.
PLAIN = "none"
PLAIN_SCANNED = "none, scanned"


@dataclasses.dataclass(frozen=True)
class Row:
    """One form of a network, and its ratios to the plain network of the same run.

    Attributes:
      model: name in the zoo, or "stage" for a single stage.
      form: of the weighted sum; `PLAIN` and `PLAIN_SCANNED` have no connections.
      depth: residual blocks.
      flops_ratio: floating-point operations, as the compiler counts; None where it
        cannot count them.
      bytes_ratio: bytes accessed, as the compiler counts; None as above.
      intensity: FLOPs per byte accessed; None as above.
      temp_ratio: temporary memory, as the compiler counts; None where the plain network
        needs none.
      temp_bytes: temporary memory.
      saved_ratio: what is saved for the backward pass.
      saved_bytes: what differentiation saves of a batch for the backward pass.
      trace_ratio: time to trace the program.
      compile_ratio: time to compile it.
      compile_seconds: time to compile it.
      step_ratio: median over the rounds of (step time / plain's in that round); for
        another target the ratio of the estimates, None where there is none.
      step_ratio_range: the least and the largest of these; None for an estimate.
      step_seconds: median step time, or the estimate.
      traffic: bytes read and written by each part of a model's step; None for a stage.
    """

    model: str
    form: str
    depth: int
    flops_ratio: float | None = None
    bytes_ratio: float | None = None
    intensity: float | None = None
    temp_ratio: float | None = None
    temp_bytes: int | None = None
    saved_ratio: float | None = None
    saved_bytes: int | None = None
    trace_ratio: float | None = None
    compile_ratio: float | None = None
    compile_seconds: float | None = None
    step_ratio: float | None = None
    step_ratio_range: tuple[float, float] | None = None
    step_seconds: float | None = None
    traffic: dict[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: a training step of a model, or the gradient of one stage.

    Attributes:
      config: of a run; its model has connections. For a target that is not here its
        batch is that of one chip.
      asked_forms: names in `FORMS`; None for all that can express the connections.
      is_stage: whether it is the gradient of a network of one stage; its parameters are
        stacked for the forms that scan, and no optimiser is measured.
      schemes: further connection schemes, modules with the interface of `Connections`.
    """

    config: ml_collections.ConfigDict
    asked_forms: Sequence[str] | None = None
    is_stage: bool = False
    schemes: Mapping[str, Callable[..., nn.Module]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def name(self) -> str:
        """As it stands in a `Row`."""
        return "stage" if self.is_stage else self.config.model.name

    @property
    def depth(self) -> int:
        """Residual blocks."""
        return sum(self.config.model.blocks_per_stage)

    def experiments(self) -> dict[str, experiment.Experiment]:
        """Every network that is measured, by its name in a `Row`.

        Raises:
          UserError: a value of the config is wrong, or there is nothing to measure.
        """
        folded = self._experiment(form="folded")
        if not folded.model.spec.connections.topology.edges:
            raise UserError(f"{self.config.model.name} has no connections to measure.")
        forms = self.asked_forms
        if forms is None:
            stackable = not folded.model.spec.connections.not_stackable
            forms = [form for form in FORMS if form != "stacked" or stackable]
        if not forms:
            raise UserError(f"No form is named: give some of {', '.join(FORMS)}.")
        for form in forms:
            pick("connection form", form, dict.fromkeys(FORMS))
        connected = {form: self._experiment(form=form) for form in forms}
        parts = {PLAIN: self._experiment(form="folded", topology=PLAIN)}
        if "stacked" in forms:
            scanned = self._experiment(form="stacked", topology=PLAIN)
            parts[PLAIN_SCANNED] = scanned
        for name, scheme in self.schemes.items():
            model = folded.model.copy(scheme=scheme)
            connected[name] = dataclasses.replace(folded, model=model)
        return parts | connected

    def _experiment(self, **connections: str) -> experiment.Experiment:
        config = copy.deepcopy(self.config)
        config.model.connections.update(connections)
        return experiment.build(config)


def subjects(
    config: ml_collections.ConfigDict,
    model: str | None,
    forms: Sequence[str] | None,
    depths: Sequence[str],
    projection: str,
    schemes: Mapping[str, Callable[..., nn.Module]],
) -> list[Subject]:
    """What a person asks to be measured.

    Args:
      config: of a run.
      model: of the zoo, whose training step is measured; None for single stages.
      forms: those measured; None for all that can express the connections.
      depths: of the stages, blocks.
      projection: of the stages.
      schemes: measured beside ours.

    Raises:
      UserError: a depth is no number, or so few blocks have no connections.
    """
    if model:
        config = copy.deepcopy(config)
        config.model.name = model
        return [Subject(config, forms, schemes=schemes)]
    found = []
    for depth in depths:
        if not depth.isdecimal() or int(depth) < 3:
            raise UserError(
                f"Depth '{depth}' must be a whole number of blocks, 3 or more: fewer "
                "have no connections."
            )
        stage = copy.deepcopy(config)
        stage.model.blocks_per_stage = (int(depth),)
        stage.model.connections.projection = projection
        found.append(Subject(stage, forms, is_stage=True, schemes=schemes))
    return found


def measure(
    subjects: Sequence[Subject],
    runs: int,
    others: Mapping[str, Mapping[str, Callable[[], object]]] | None = None,
) -> list[Row]:
    """Compiles and times every form, and the plain network, of each subject.

    Args:
      subjects: what is measured, one after the other.
      runs: timed rounds, each of one step of every program of a subject in turn.
      others: steps that are timed with those of each subject, {model: {form: step}};
        the unit of each model is its form `PLAIN`.

    Returns:
      A row per program, the plain network first.

    Raises:
      UserError: a value of the config is wrong, or there is nothing to measure.
    """
    rows = []
    for subject, parts in [(subject, subject.experiments()) for subject in subjects]:
        programs = {name: _compile(subject, part) for name, part in parts.items()}
        timed = {(subject.name, name): p.run for name, p in programs.items()}
        for model, forms in (others or {}).items():
            timed |= {(model, form): step for form, step in forms.items()}
        seconds = cost.interleaved_seconds(timed, runs)
        known = {(row.model, row.form): row for row in _rows(subject, programs)}
        for (model, form), times in seconds.items():
            ratios = times / seconds[model, PLAIN]
            rows.append(
                dataclasses.replace(
                    known.get((model, form), Row(model, form, subject.depth)),
                    step_ratio=float(np.median(ratios)),
                    step_ratio_range=(float(ratios.min()), float(ratios.max())),
                    step_seconds=float(np.median(times)),
                )
            )
    return rows


def estimate(subjects: Sequence[Subject], target: str) -> list[Row]:
    """As `measure`, for chips that are not here: compiled, but not run.

    Args:
      subjects: what is measured; the batch of each is that of one chip.
      target: such as "v5e:2x2".

    Raises:
      UserError: a value of a config or the target is wrong, or the compiler of the
        target is missing.
    """
    chip, devices = chips.chip(target), chips.devices(target)
    rows = []
    for subject, parts in [(subject, subject.experiments()) for subject in subjects]:
        programs = {
            name: _compile(subject, part, devices) for name, part in parts.items()
        }
        seconds = {
            name: chip.roofline_seconds(program.cost)
            for name, program in programs.items()
            if program.cost is not None
        }
        for row in _rows(subject, programs):
            if row.form in seconds:
                row = dataclasses.replace(
                    row,
                    step_ratio=seconds[row.form] / seconds[PLAIN],
                    step_seconds=seconds[row.form],
                )
            rows.append(row)
    return rows


@dataclasses.dataclass
class _Program:
    """A compiled program.

    Attributes:
      compiled: takes `given`; a step returns the next state first, and consumes its
        own.
      given: its arguments.
      cost: of all turns of its loops; None where that cannot be told.
      temp_bytes: temporary memory.
      saved_bytes: what is saved of a batch for the backward pass.
      traffic: bytes by part of the network, of a step.
      trace_seconds: of the program.
      compile_seconds: of the program.
    """

    compiled: jax.stages.Compiled
    given: tuple
    is_step: bool
    cost: cost.Cost | None
    temp_bytes: int
    saved_bytes: int
    traffic: dict[str, float] | None
    trace_seconds: float
    compile_seconds: float

    def run(self) -> object:
        """Runs it once."""
        results = self.compiled(*self.given)
        if self.is_step:
            self.given = (results[0], *self.given[1:])
        return results[1]


def _compile(
    subject: Subject,
    part: experiment.Experiment,
    devices: Sequence[jax.Device] | None = None,
) -> _Program:
    """Compiles a network's program, for devices that are not here if they are given."""
    saved_bytes = _saved_bytes(part)
    if devices is not None:
        batch_size = part.recipe.batch_size * len(devices)
        mesh = sharding.make_mesh(batch_size, devices)
        part = dataclasses.replace(part, mesh=mesh)
    function, given = _program(subject, part, abstract=devices is not None)
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=() if subject.is_stage else 0).lower(
        *given
    )
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    once = cost.of(compiled)
    return _Program(
        compiled=compiled,
        given=given,
        is_step=not subject.is_stage,
        cost=_of_all_turns(subject, part, given, once),
        temp_bytes=once.temp_bytes,
        saved_bytes=saved_bytes,
        traffic=None if subject.is_stage else traffic.by_part(compiled.as_text() or ""),
        trace_seconds=traced - start,
        compile_seconds=done - traced,
    )


def _program(
    subject: Subject, part: experiment.Experiment, *, abstract: bool
) -> tuple[Callable[..., tuple], tuple]:
    """The function that is compiled, and its arguments or their shapes."""
    state = part.create_state(abstract=abstract)
    if abstract:
        # As many images on each device as the recipe says.
        shapes = _batch_shapes(part, part.recipe.batch_size * part.mesh.size)
        batch = sharding.abstract(shapes, sharding.split_batch(part.mesh))
    else:
        batch = _batch(part)
    if not subject.is_stage:
        return part.step, (state, batch)
    pack, unpack = _packing(part)

    def gradient(params: Any, batch_stats: Any, batch: pipeline.Batch) -> tuple:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            value, updates = _loss(part, unpack(params), unpack(batch_stats), batch)
            return value, pack(updates)

        return jax.grad(loss, has_aux=True)(params)

    packed = pack(state.params), pack(state.batch_stats)
    return gradient, (*packed, batch)


def _loss(
    part: experiment.Experiment, params: Any, batch_stats: Any, batch: pipeline.Batch
) -> tuple[jax.Array, Any]:
    """The loss of a batch, and the new batch statistics."""
    logits, updates = part.model.apply(
        {"params": params, "batch_stats": batch_stats},
        batch.images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    losses = steps.cross_entropy(logits, batch.targets, label_smoothing=0.0)
    return losses.mean(), updates["batch_stats"]


def _loops(part: experiment.Experiment) -> list[int]:
    """The number of blocks in each loop over blocks."""
    spec = part.model.spec
    if spec.connections.form != "stacked":
        return []
    unroll = spec.connections.unroll
    return [len(blocks) for blocks in spec.alike if len(blocks) > unroll]


def _packing(
    part: experiment.Experiment,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Stacks the parameters of a stage's blocks, if they are scanned, and back."""
    if part.model.spec.connections.form != "stacked":
        return (lambda tree: tree), (lambda tree: tree)
    blocks = [f"block_{i}" for i in part.model.spec.alike[0]]

    def pack(tree: Any) -> Any:
        rest = {name: leaf for name, leaf in tree.items() if name not in blocks}
        of_blocks = [tree[name] for name in blocks]
        if isinstance(jax.tree.leaves(of_blocks)[0], jax.ShapeDtypeStruct):
            stacked = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    (len(blocks), *x.shape), x.dtype, sharding=x.sharding
                ),
                of_blocks[0],
            )
        else:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_blocks)
        return rest | {"stacked": stacked}

    def unpack(tree: Any) -> Any:
        one = {
            name: jax.tree.map(operator.itemgetter(n), tree["stacked"])
            for n, name in enumerate(blocks)
        }
        return {name: leaf for name, leaf in tree.items() if name != "stacked"} | one

    return pack, unpack


def _of_all_turns(
    subject: Subject, part: experiment.Experiment, given: tuple, once: cost.Cost
) -> cost.Cost | None:
    """The cost of a program whose loops the compiler counted as one turn.

    With two blocks in a turn it counts them twice: the difference is that of a turn.
    """
    turns = set(_loops(part))
    if not turns:
        return once
    spec = part.model.spec
    if len(turns) > 1 or spec.connections.unroll > 1:
        return None
    (turns_of_each,) = turns
    unrolled = dataclasses.replace(spec.connections, unroll=2)
    model = part.model.copy(spec=dataclasses.replace(spec, connections=unrolled))
    function, _ = _program(
        subject, dataclasses.replace(part, model=model), abstract=True
    )
    twice = cost.of(jax.jit(function).lower(*given).compile())
    # What is left of an odd number of turns stands behind the loop.
    factor = (turns_of_each - 1) / (1 + turns_of_each % 2)
    return dataclasses.replace(
        once,
        flops=once.flops + factor * (twice.flops - once.flops),
        bytes_accessed=once.bytes_accessed
        + factor * (twice.bytes_accessed - once.bytes_accessed),
    )


def _saved_bytes(part: experiment.Experiment) -> int:
    """What differentiation saves of one batch for the backward pass, bytes.

    What does not depend on the batch, such as the parameters, cancels out between
    batches of two sizes.
    """
    state = jax.eval_shape(functools.partial(_variables, part))

    def residuals(batch_size: int) -> int:
        pullback = jax.eval_shape(
            lambda params, stats, batch: jax.vjp(
                lambda params: _loss(part, params, stats, batch), params, has_aux=True
            )[1],
            state["params"],
            state["batch_stats"],
            _batch_shapes(part, batch_size),
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))

    size = part.recipe.batch_size
    return residuals(2 * size) - residuals(size)


def _variables(part: experiment.Experiment) -> Any:
    side, channels = part.dataset.image_size, part.dataset.channels
    images = jnp.zeros((1, side, side, channels))
    return part.model.init(jax.random.key(0), images, train=False)


def _batch(parts: experiment.Experiment) -> pipeline.Batch:
    size, side = parts.recipe.batch_size, parts.dataset.image_size
    random = np.random.RandomState(0)
    shape = (size, side, side, parts.dataset.channels)
    return pipeline.make_batch(
        parts.recipe,
        jnp.asarray(random.randint(256, size=shape), jnp.uint8),
        jnp.asarray(random.randint(parts.dataset.num_classes, size=size), jnp.int32),
    )


def _batch_shapes(part: experiment.Experiment, size: int) -> pipeline.Batch:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype),
        jax.eval_shape(functools.partial(_batch, part)),
    )


def _rows(subject: Subject, programs: Mapping[str, _Program]) -> list[Row]:
    """What the compiler and the tracer tell of each program."""
    plain = programs[PLAIN]

    def row(form: str, program: _Program) -> Row:
        counts: dict[str, Any] = {}
        if program.cost is not None and plain.cost is not None:
            counts = {
                "flops_ratio": program.cost.flops / plain.cost.flops,
                "bytes_ratio": program.cost.bytes_accessed / plain.cost.bytes_accessed,
                "intensity": program.cost.flops / program.cost.bytes_accessed,
            }
        if plain.temp_bytes:
            counts["temp_ratio"] = program.temp_bytes / plain.temp_bytes
        return Row(
            subject.name,
            form,
            subject.depth,
            temp_bytes=program.temp_bytes,
            saved_bytes=program.saved_bytes,
            saved_ratio=program.saved_bytes / plain.saved_bytes,
            trace_ratio=program.trace_seconds / plain.trace_seconds,
            compile_ratio=program.compile_seconds / plain.compile_seconds,
            compile_seconds=program.compile_seconds,
            traffic=program.traffic,
            **counts,
        )

    return [row(form, program) for form, program in programs.items()]
