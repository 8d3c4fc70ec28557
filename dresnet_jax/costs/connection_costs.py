"""Measures learned connections against the same network without them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from dresnet_jax import defaults
from dresnet_jax.connections.spec import FORMS
from dresnet_jax.costs import chips, cost, pod
from dresnet_jax.costs.programs import Program, build
from dresnet_jax.errors import UserError, pick
from dresnet_jax.models import zoo
from dresnet_jax.training import experiment

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
      flops_ratio: floating-point operations, as `counting.flops` counts them.
      bytes_ratio: bytes accessed, as the compiler counts; None where it cannot count
        those of a loop.
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
      schemes: further connection schemes, modules with the interface of `Connections`,
        which refuse what they cannot express when they are made.
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
        return sum(zoo.blocks_per_stage(self.config.model))

    def experiments(self) -> dict[str, experiment.Experiment]:
        """Returns every network that is measured, by its name in a `Row`.

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
        plain = {"topology": PLAIN, "base": "fixed"}
        experiments = {PLAIN: self._experiment(form="folded", **plain)}
        if "stacked" in forms:
            experiments[PLAIN_SCANNED] = self._experiment(form="stacked", **plain)
        for name, scheme in self.schemes.items():
            spec = folded.model.spec
            scheme(spec.connections, spec.channels)  # Checks that it can express them.
            model = folded.model.copy(scheme=scheme)
            connected[name] = dataclasses.replace(folded, model=model)
        return experiments | connected

    def _experiment(self, **connections: str) -> experiment.Experiment:
        fields = {f"model.connections.{name}": x for name, x in connections.items()}
        return experiment.build(defaults.replace(self.config, fields))


def subjects(
    config: ml_collections.ConfigDict,
    model: str | None,
    forms: Sequence[str] | None,
    depths: Sequence[str],
    projection: str,
    schemes: Mapping[str, Callable[..., nn.Module]],
) -> list[Subject]:
    """Returns what a person asks to be measured.

    Args:
      config: of a run.
      model: of the zoo, whose training step is measured; None for single stages.
      forms: those measured; None for all that can express the connections.
      depths: of the stages, blocks.
      projection: of the stages.
      schemes: measured with ours.

    Raises:
      UserError: a depth is no number, or so few blocks have no connections.
    """
    if model:
        config = defaults.replace(config, {"model.name": model})
        return [Subject(config, forms, schemes=schemes)]
    result = []
    for depth in depths:
        if not depth.isdecimal() or int(depth) < 3:
            raise UserError(
                f"Depth '{depth}' must be a whole number of blocks, 3 or more: fewer "
                "have no connections."
            )
        stage = defaults.replace(
            config,
            {
                "model.blocks_per_stage": (int(depth),),
                "model.connections.projection": projection,
            },
        )
        result.append(Subject(stage, forms, is_stage=True, schemes=schemes))
    return result


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
    for subject, programs in _compiled(subjects):
        timed = {(subject.name, name): p.run for name, p in programs.items()}
        for model, forms in (others or {}).items():
            timed |= {(model, form): step for form, step in forms.items()}
        seconds = cost.interleaved_seconds(timed, runs)
        for (model, form), times in seconds.items():
            ratios = times / seconds[model, PLAIN]
            is_ours = model == subject.name
            rows.append(
                dataclasses.replace(
                    _row(subject, form, programs)
                    if is_ours
                    else Row(model, form, subject.depth),
                    step_ratio=float(np.median(ratios)),
                    step_ratio_range=(float(ratios.min()), float(ratios.max())),
                    step_seconds=float(np.median(times)),
                )
            )
    return rows


def estimate(subjects: Sequence[Subject], target: str) -> list[Row]:
    """Compiles as `measure` does, for chips that are not here, without a run.

    The batch of each subject is that of one chip of the target, such as "v5e:2x2".

    Raises:
      UserError: a value of a config or the target is wrong, or the compiler of the
        target is missing.
    """
    asked = chips.parse(target)
    devices = chips.devices(asked)
    rows = []
    for subject, programs in _compiled(subjects, devices):
        seconds = {
            form: pod.estimate(asked, program.cost, []).alone
            for form, program in programs.items()
            if program.cost is not None
        }
        for form in programs:
            row = _row(subject, form, programs)
            if time := seconds.get(form):
                ratio = time / seconds[PLAIN]
                row = dataclasses.replace(row, step_ratio=ratio, step_seconds=time)
            rows.append(row)
    return rows


def _compiled(
    subjects: Sequence[Subject], devices: Sequence[jax.Device] | None = None
) -> Iterator[tuple[Subject, dict[str, Program]]]:
    """Checks all subjects, and then compiles the programs of one after the other."""
    checked = [(subject, subject.experiments()) for subject in subjects]
    for subject, experiments in checked:
        programs = {
            name: build(exp, is_stage=subject.is_stage, devices=devices)
            for name, exp in experiments.items()
        }
        yield subject, programs


def _row(subject: Subject, form: str, programs: Mapping[str, Program]) -> Row:
    """What the compiler and the tracer report of a program."""
    program, plain = programs[form], programs[PLAIN]
    total, of_plain = (p.cost and p.cost.bytes_accessed for p in (program, plain))
    return Row(
        subject.name,
        form,
        subject.depth,
        flops_ratio=program.flops / plain.flops,
        bytes_ratio=total / of_plain if total and of_plain else None,
        intensity=program.flops / total if total else None,
        temp_ratio=program.temp_bytes / plain.temp_bytes if plain.temp_bytes else None,
        temp_bytes=program.temp_bytes,
        saved_bytes=program.saved_bytes,
        saved_ratio=program.saved_bytes / plain.saved_bytes,
        trace_ratio=program.trace_seconds / plain.trace_seconds,
        compile_ratio=program.compile_seconds / plain.compile_seconds,
        compile_seconds=program.compile_seconds,
        traffic=program.traffic,
    )
