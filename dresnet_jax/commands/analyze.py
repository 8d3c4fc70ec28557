r"""Looks into networks, trained or not.

    python -m dresnet_jax.analyze gradients --config=configs/digits.py --out=flow.png
    python -m dresnet_jax.analyze gradients --config=configs/digits.py --out=flow.png \
        --runs=runs/plain,runs/residual,runs/dense
    python -m dresnet_jax.analyze graph --workdir=runs/digits --out=graph.png
    python -m dresnet_jax.analyze routes --workdir=runs/routed --out=routes.png
    python -m dresnet_jax.analyze residuals --workdir=runs/scaled --out=residuals.png

`gradients` draws the norm of the loss's gradient by the output of each block, before
training: for the blocks of the config's model without shortcuts (plain), with them
(residual), and with learned connections added to them (dense). It draws each of --runs
at its start and at its newest checkpoint. The batch is the first of the training split.

`graph` draws who reads whom in a run, from the stem to the classifier, each connection
as wide as it is open at the newest checkpoint.

`routes` draws the mean weights of the operations of each mixed block of a run, by the
class of the images, on the validation split.

`residuals` draws the a of the learned residuals x + a F(x) of a run, block by block.
"""

import sys
from typing import Any

import ml_collections
from etils import epath

from dresnet_jax.commands import cli
from dresnet_jax.errors import pick

command = cli.Command(
    __doc__, "config workdir compilation_cache json", words=("subject",)
)

_OUT = command.flag("out", str, "The picture's file, such as gradients.png.")
_RUNS = command.flag("runs", [], "Directories of runs, drawn too.")
_SEEDS = command.flag("seeds", 5, "Starts of each stack.", lower_bound=1)


@command.main
def main(subject: str) -> None:
    """Measures, prints, draws."""
    subjects = {
        "gradients": _gradients,
        "graph": _graph,
        "routes": _routes,
        "residuals": _residuals,
    }
    analyse = pick("analysis", subject, subjects)
    picture = cli.picture_file(_OUT.value)
    given: Any = command.config() if subject == "gradients" else command.workdir()
    command.use_compilation_cache()
    found = analyse(given, picture)
    print(f"picture: {_OUT.value}")
    command.finish({"picture": _OUT.value} | found)


def _gradients(
    config: ml_collections.ConfigDict, picture: epath.Path
) -> dict[str, Any]:
    from dresnet_jax.figures import gradient_flow, pictures

    runs = [epath.Path(name).expanduser() for name in _RUNS.value]
    panels = gradient_flow.panels(config, _SEEDS.value, runs)
    for title, flows in panels.items():
        print(gradient_flow.table(title, flows))
    pictures.save(gradient_flow.draw(panels), picture)
    norms = {
        title: {name: norms.tolist() for name, norms in flows.items()}
        for title, flows in panels.items()
    }
    return {"norms": norms}


def _graph(directory: epath.Path, picture: epath.Path) -> dict[str, Any]:
    from dresnet_jax.figures import graph, pictures
    from dresnet_jax.training import evaluation

    parts, restored = evaluation.open_run(directory)
    topology = parts.model.spec.connections.topology
    openings = parts.gate_values(restored.state)
    pictures.save(graph.draw(topology, openings), picture)
    print(f"blocks: {len(topology.blocks)}, connections: {len(topology.edges)}")
    edges = [
        [i, k, opening] for i, row in openings.items() for k, opening in row.items()
    ]
    return {"step": restored.step, "edges": edges}


def _routes(directory: epath.Path, picture: epath.Path) -> dict[str, Any]:
    from dresnet_jax.figures import pictures, routes
    from dresnet_jax.training import evaluation

    parts, restored = evaluation.open_run(directory)
    named, classes = routes.operations(parts), parts.dataset.class_names
    examples = parts.open_splits()["validation"]
    found = routes.by_class(parts, restored.state, examples)
    print(routes.table(parts, found))
    pictures.save(routes.draw(found, named, classes), picture)
    weights = {i: weights.tolist() for i, weights in found.items()}
    return {
        **{"step": restored.step, "operations": named},
        **{"classes": classes, "weights": weights},
    }


def _residuals(directory: epath.Path, picture: epath.Path) -> dict[str, Any]:
    from dresnet_jax.figures import pictures, residuals
    from dresnet_jax.training import evaluation

    parts, restored = evaluation.open_run(directory)
    found = residuals.scales(parts, restored.state)
    print(residuals.table(found))
    pictures.save(residuals.draw(found), picture)
    scales = {i: a.tolist() for i, a in found.items()}
    return {"step": restored.step, "scales": scales}


if __name__ == "__main__":
    sys.exit(command.run())
