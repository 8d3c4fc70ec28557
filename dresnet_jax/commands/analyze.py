r"""Looks into networks, trained or not.

    python -m dresnet_jax.analyze gradients --config=configs/digits.py --out=flow.png
    python -m dresnet_jax.analyze gradients --config=configs/digits.py --out=flow.png \
        --runs=runs/plain,runs/residual,runs/dense
    python -m dresnet_jax.analyze graph --workdir=runs/digits --out=graph.png
    python -m dresnet_jax.analyze routes --workdir=runs/routed --out=routes.png
    python -m dresnet_jax.analyze residuals --workdir=runs/scaled --out=residuals.png

`gradients` draws the norm of the loss's gradient by the output of each block, before
training: for the blocks of the config's model without shortcuts (plain), with them
(residual), and with learned connections beside them (dense). It draws each of --runs at
its start and at its newest checkpoint. The batch is the first of the training split.

`graph` draws who reads whom in a run, from the stem to the classifier, each connection
as wide as it is open at the newest checkpoint.

`routes` draws the mean weights of the operations of each mixed block of a run, by the
class of the images, on the validation split.

`residuals` draws the a of the learned residuals x + a F(x) of a run, block by block.
"""

import sys
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from dresnet_jax.commands import cli
from dresnet_jax.errors import pick

if TYPE_CHECKING:
    import numpy as np

command = cli.Command(
    __doc__, "config workdir compilation_cache json", words=("subject",)
)

_OUT = command.flag(
    flags.DEFINE_string, "out", None, "The picture's file, such as gradients.png."
)
_RUNS = command.flag(flags.DEFINE_list, "runs", [], "Directories of runs, drawn too.")
_SEEDS = command.flag(
    flags.DEFINE_integer, "seeds", 5, "Starts of each stack.", lower_bound=1
)


@command.main
def main(subject: str) -> None:
    """Measures, prints, draws."""
    subjects = {
        "gradients": _gradients,
        "graph": _graph,
        "routes": _routes,
        "residuals": _residuals,
    }
    pick("analysis", subject, subjects)()


def _gradients() -> None:
    picture, config = cli.picture_file(_OUT.value), command.config()

    from dresnet_jax.figures import gradient_flow, pictures
    from dresnet_jax.training import evaluation

    command.use_compilation_cache()
    runs = [evaluation.open_run(epath.Path(name).expanduser()) for name in _RUNS.value]
    stacks = gradient_flow.stacks(config)
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
        print(gradient_flow.table(title, flows))
    pictures.save(gradient_flow.draw(panels), picture)
    print(f"picture: {_OUT.value}")
    command.finish({"picture": _OUT.value, "norms": _listed(panels)})


def _graph() -> None:
    picture, directory = cli.picture_file(_OUT.value), command.workdir()

    from dresnet_jax.figures import graph, pictures
    from dresnet_jax.training import evaluation

    command.use_compilation_cache()
    parts, restored = evaluation.open_run(directory)
    topology = parts.model.spec.connections.topology
    openings = parts.gate_openings(restored.state)
    pictures.save(graph.draw(topology, openings), picture)
    print(f"blocks: {len(topology.blocks)}, connections: {len(topology.edges)}")
    print(f"picture: {_OUT.value}")
    edges = [
        [i, k, opening] for i, row in openings.items() for k, opening in row.items()
    ]
    command.finish({"picture": _OUT.value, "step": restored.step, "edges": edges})


def _routes() -> None:
    picture, directory = cli.picture_file(_OUT.value), command.workdir()

    from dresnet_jax.figures import pictures, routes
    from dresnet_jax.training import evaluation

    command.use_compilation_cache()
    parts, restored = evaluation.open_run(directory)
    named = routes.operations(parts)
    examples = parts.open_splits()["validation"]
    found = routes.by_class(parts, restored.state, examples)
    print(routes.table(parts, found))
    classes = parts.dataset.class_names
    pictures.save(routes.draw(found, named, classes), picture)
    print(f"picture: {_OUT.value}")
    command.finish(
        {
            "picture": _OUT.value,
            "step": restored.step,
            "operations": named,
            "classes": classes,
            "weights": {i: weights.tolist() for i, weights in found.items()},
        }
    )


def _residuals() -> None:
    picture, directory = cli.picture_file(_OUT.value), command.workdir()

    from dresnet_jax.figures import pictures, residuals
    from dresnet_jax.training import evaluation

    command.use_compilation_cache()
    parts, restored = evaluation.open_run(directory)
    found = residuals.scales(parts, restored.state)
    print(residuals.table(found))
    pictures.save(residuals.draw(found), picture)
    print(f"picture: {_OUT.value}")
    listed = {i: a.tolist() for i, a in found.items()}
    command.finish({"picture": _OUT.value, "step": restored.step, "scales": listed})


def _listed(panels: "dict[str, dict[str, np.ndarray]]") -> dict[str, Any]:
    """{panel: {line: [states, blocks]}}, for JSON."""
    return {
        title: {name: norms.tolist() for name, norms in flows.items()}
        for title, flows in panels.items()
    }


if __name__ == "__main__":
    sys.exit(command.run())
