"""Measures training steps on the accelerator that is here, the most important first.

    benchmarks/gpu.sh --out=docs/results/gpu

For each network, at each of a few batch sizes: images a second, the time of a step,
memory and MFU (FLOPs as `counting.flops` counts them / time / the device's peak), in
bfloat16 on images that are on the device already; also PyTorch's ResNet-50 (channels
last, autocast, torch.compile), every form of the learned connections, and the original
DResNet in PyTorch. Each row is written to rows.jsonl and README.md in --out as soon as
it is measured; what does not fit into --minutes is left out and listed.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from dresnet_jax.commands import cli
from dresnet_jax.errors import RunFailedError, UserError

command = cli.Command(__doc__, "compilation_cache json")

_OUT = command.flag("out", "docs/results/gpu", "Directory that is written.")
_MINUTES = command.flag("minutes", 8.0, "No measurement starts later.", lower_bound=0.0)
_BATCH_SIZES = command.flag(
    "batch_sizes", ["128", "256"], "Images of a step, tried each."
)
_IMAGE_SIZE = command.flag("image_size", 224, "Side of the images.", lower_bound=8)
_WIDTH = command.flag("width", float, "Of every network; its own if not given.")
_SECONDS = command.flag("seconds", 2.0, "How long each step is timed.", lower_bound=0.0)

NETWORKS = ("resnet50", "dresnet50", "resnet18", "dresnet18", "convnext_tiny")
# In PyTorch, with its ResNet-50.
PEERS = ("resnet18_seed", "dresnet18_seed")
# Of the network whose forms are compared.
FORMS_OF, FORMS = "dresnet50", ("folded", "stacked", "reference")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured step.

    Attributes:
      network: its name.
      by: "dresnet_jax" or "PyTorch".
      form: of the connections, where it was asked for.
      batch_size: images of a step.
      images_per_second: from the median time.
      step_seconds: median of the calls.
      spread: least and largest time of a call.
      memory_bytes: at most in use: as the compiler plans it, or as PyTorch counts it.
      mfu: None where the device's peak or the FLOPs are not known.
    """

    network: str
    by: str
    form: str
    batch_size: int
    images_per_second: float
    step_seconds: float
    spread: tuple[float, float]
    memory_bytes: int
    mfu: float | None


@command.main
def main() -> None:
    """Measures what fits into the time."""
    sizes = _sizes()

    from dresnet_jax.costs import cost

    command.use_compilation_cache()
    end = time.monotonic() + 60 * _MINUTES.value
    out = epath.Path(_OUT.value).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    machine, rows, left_out = cost.machine(), [], []
    (out / "rows.jsonl").write_text("")
    for name, measure in _tasks(sizes):
        row, why = None, "no time left"
        if time.monotonic() < end:
            try:
                row = measure()
            except (MemoryError, RuntimeError, UserError) as error:
                why = str(error).splitlines()[0][:200]
        if row is None:
            left_out.append(f"{name}: {why}")
            print(f"left out: {left_out[-1]}", flush=True)
        else:
            rows.append(row)
            print(_line(row), flush=True)
            with (out / "rows.jsonl").open("a") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
        (out / "README.md").write_text(_page(rows, left_out, machine))
    if not rows:
        raise RunFailedError(f"Nothing could be measured: {left_out[0]}.")
    print(f"{len(rows)} rows in {out}; left out: {len(left_out)}")
    result = {"machine": machine, "left_out": left_out}
    command.finish(result | {"rows": [dataclasses.asdict(row) for row in rows]})


def _sizes() -> list[int]:
    given = _BATCH_SIZES.value
    if not given or any(not size.isdecimal() or not int(size) for size in given):
        sizes = ",".join(given)
        raise UserError(f"--batch_sizes={sizes} must be whole numbers above 0.")
    return [int(size) for size in given]


def _tasks(sizes: list[int]) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Everything that is measured, in order: its name, and what measures it."""
    for network in NETWORKS:
        for size in sizes:
            yield f"{network}, batch {size}", lambda n=network, s=size: _ours(n, s)
        if network == "dresnet50":
            for size in sizes:
                yield (
                    f"PyTorch's resnet50, batch {size}",
                    lambda s=size: _theirs("resnet50", s),
                )
    for form in FORMS:
        yield (
            f"{FORMS_OF}, form {form}",
            lambda f=form: _ours(FORMS_OF, sizes[0], f),
        )
    for network in PEERS:
        yield (
            f"PyTorch's {network}, batch {sizes[0]}",
            lambda n=network: _theirs(n, sizes[0]),
        )


def _ours(network: str, batch_size: int, form: str | None = None) -> Row:
    """Measures a training step of this package.

    Raises:
      UserError: the form cannot express the network's connections.
      RuntimeError: the device's memory is too small.
    """
    import jax

    from configs import imagenet2012
    from dresnet_jax.costs import chips, cost
    from dresnet_jax.training import experiment

    config = imagenet2012.get_config().unlock()
    config.data.update(dataset="synthetic", channels=3, num_classes=1000)
    config.data.update(batch_size=batch_size, num_examples=batch_size)
    config.data.update(image_size=_IMAGE_SIZE.value, min_crop_area=0.0)
    config.model.name = network
    if _WIDTH.value:
        config.model.width = _WIDTH.value
    if form:
        config.model.connections.form = form
    exp = experiment.build(config)
    program, state = exp.compile_train_step(), exp.create_state()
    given = exp.inputs.data(exp.open_data(), config.seed, exp.calls(0)[:1])
    inputs, _ = next(given)
    given.close()

    def step() -> None:
        nonlocal state
        state, result = program(state, inputs)
        jax.block_until_ready(result)

    seconds = _timed(step)
    median, peak = statistics.median(seconds), chips.peak_flops(jax.devices()[0])
    counts = cost.of(program, exp.step_flops)
    return Row(
        network,
        "dresnet_jax",
        form or "",
        batch_size,
        batch_size / median,
        median,
        (min(seconds), max(seconds)),
        counts.temp_bytes + counts.argument_bytes,
        counts.flops / median / peak if peak else None,
    )


def _theirs(network: str, batch_size: int) -> Row:
    """Measures a training step of PyTorch, in a process of its own.

    Raises:
      RuntimeError: PyTorch is not installed, or failed.
    """
    asked = {
        "network": network,
        "batch": batch_size,
        "side": _IMAGE_SIZE.value,
        "width": round(_WIDTH.value or 64),
        "seconds": _SECONDS.value,
    }
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.pytorch_speed", json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(lines[-1])
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    seconds = result["seconds"]
    median = statistics.median(seconds)
    return Row(
        network,
        "PyTorch",
        "",
        batch_size,
        batch_size / median,
        median,
        (min(seconds), max(seconds)),
        result["memory_bytes"],
        None,
    )


def _timed(call: Callable[[], object]) -> list[float]:
    """Times a call again and again, after two that do not count."""
    for _ in range(2):
        call()
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < _SECONDS.value:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def _page(rows: list[Row], left_out: list[str], machine: str) -> str:
    """The table of all rows, and what is missing."""
    titles = ["network", "by", "form", "batch", "images/s", "ms a step (range)"]
    titles += ["memory, GB", "MFU"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    lines += map(_line, rows)
    side = _IMAGE_SIZE.value
    head = [
        "# Training steps on one accelerator",
        "",
        f"Printed by `benchmarks/gpu.sh`: {side}x{side}, bfloat16, 1,000 classes,",
        "images on the device; median and range of the calls in "
        f"{_SECONDS.value:g} seconds.",
        f"{machine}.",
        "",
    ]
    missing = ["", "Left out:", "", *(f"- {why}" for why in left_out)]
    return "\n".join([*head, *lines, *(missing if left_out else [])]) + "\n"


def _line(row: Row) -> str:
    """The row of the table."""
    low, high = (1e3 * x for x in row.spread)
    mfu = "" if row.mfu is None else f"{row.mfu:.1%}"
    return (
        f"| {row.network} | {row.by} | {row.form} | {row.batch_size} "
        f"| {row.images_per_second:,.0f} "
        f"| {1e3 * row.step_seconds:.1f} ({low:.1f} to {high:.1f}) "
        f"| {row.memory_bytes / 1e9:.1f} | {mfu} |"
    )


if __name__ == "__main__":
    sys.exit(command.run())
