r"""Looks into networks, trained or not.

    python -m dresnet_jax.analyze gradients --config=configs/digits.py --out=flow.png
    python -m dresnet_jax.analyze gradients --config=configs/digits.py --out=flow.png \
        --runs=runs/plain,runs/residual,runs/dense

`gradients` draws the norm of the loss's gradient by the output of each block, before
training: for the blocks of the config's model without shortcuts (plain), with them
(residual), and with learned connections beside them (dense). It draws each of --runs at
its start and at its newest checkpoint. The batch is the first of the training split.
"""

from typing import Any

import numpy as np
from absl import flags
from etils import epath

from dresnet_jax import cli
from dresnet_jax.analysis import gradient_flow, plots, reports
from dresnet_jax.errors import pick
from dresnet_jax.training import evaluation

_OUT = flags.DEFINE_string("out", None, "The picture's file, such as gradients.png.")
_RUNS = flags.DEFINE_list("runs", [], "Directories of runs, drawn too.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Starts of each stack.", lower_bound=1)


def main(subject: str) -> None:
    """Measures, prints, draws."""
    pick("analysis", subject, {"gradients": _gradients})()


def _gradients() -> None:
    picture = cli.picture_file(_OUT.value)
    runs = [evaluation.open_run(epath.Path(name).expanduser()) for name in _RUNS.value]
    stacks = gradient_flow.stacks(cli.config())
    title = f"at the start, {_SEEDS.value} seeds"
    panels: dict[str, dict[str, np.ndarray]] = {title: {}}
    batch = evaluation.first_batch(stacks["plain"])  # The data of all.
    for name, part in stacks.items():
        states = [part.with_seed(n).create_state() for n in range(_SEEDS.value)]
        panels[title][name] = gradient_flow.norms(part, batch, states)
    for name, (part, restored) in zip(_RUNS.value, runs, strict=True):
        states = [part.create_state(), restored.state]
        found = gradient_flow.norms(part, evaluation.first_batch(part), states)
        ends = ("step 0", f"step {restored.step}")
        panels[name] = dict(zip(ends, found[:, None], strict=True))
    for title, flows in panels.items():
        print(reports.gradient_table(title, flows))
    plots.save(plots.gradient_flow(panels), picture)
    print(f"picture: {_OUT.value}")
    cli.finish({"picture": _OUT.value, "norms": _listed(panels)})


def _listed(panels: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """{panel: {line: [states, blocks]}}, for JSON."""
    return {
        title: {name: norms.tolist() for name, norms in flows.items()}
        for title, flows in panels.items()
    }


if __name__ == "__main__":
    cli.run(main, uses=("config", "runs", "seeds", "out", "json"), words=("subject",))
