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
from typing import TYPE_CHECKING, Any

from etils import epath

from dresnet_jax.commands import cli
from dresnet_jax.errors import pick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dresnet_jax.training.experiment import Experiment
    from dresnet_jax.training.state import TrainState

    # A figure, and what it shows, of JSON's types.
    Drawn = tuple[Figure, dict[str, Any]]

command = cli.Command(
    __doc__, "config workdir compilation_cache json", words=("subject",)
)

_OUT = command.flag("out", str, "The picture's file, such as gradients.png.")
_RUNS = command.flag("runs", [], "Directories of runs, drawn too.")
_SEEDS = command.flag("seeds", 5, "Starts of each stack.", lower_bound=1)


@command.main
def main(subject: str) -> None:
    """Measures, prints, draws."""
    of_runs: dict[str, Any] = {
        "graph": _graph,
        "routes": _routes,
        "residuals": _residuals,
    }
    analyse = pick("analysis", subject, {"gradients": None} | of_runs)
    picture = cli.new_file("out", _OUT.value, ".png")
    given: Any = command.workdir() if analyse else command.config()

    from dresnet_jax.figures import gradient_flow, pictures
    from dresnet_jax.training import evaluation

    command.use_compilation_cache()
    result: dict[str, Any] = {"picture": _OUT.value}
    if analyse:
        exp, restored = evaluation.open_run(given)
        figure, numbers = analyse(exp, restored.state)
        result |= {"step": restored.step} | numbers
    else:
        runs = [epath.Path(name).expanduser() for name in _RUNS.value]
        panels = gradient_flow.panels(given, _SEEDS.value, runs)
        for title, flows in panels.items():
            print(gradient_flow.table(title, flows))
        figure = gradient_flow.draw(panels)
        result["norms"] = {
            title: {name: norms.tolist() for name, norms in flows.items()}
            for title, flows in panels.items()
        }
    pictures.save(figure, picture)
    print(f"picture: {_OUT.value}")
    command.finish(result)


def _graph(exp: "Experiment", state: "TrainState") -> "Drawn":
    from dresnet_jax.figures import graph

    topology = exp.model.spec.connections.topology
    gates = exp.gate_values(state)
    print(f"blocks: {len(topology.blocks)}, connections: {len(topology.edges)}")
    edges = [[i, k, gate] for i, row in gates.items() for k, gate in row.items()]
    return graph.draw(topology, gates), {"edges": edges}


def _routes(exp: "Experiment", state: "TrainState") -> "Drawn":
    from dresnet_jax.figures import routes

    named, classes = routes.operations(exp), exp.dataset.class_names
    result = routes.by_class(exp, state, exp.open_splits()["validation"])
    print(routes.table(exp, result))
    weights = {i: weights.tolist() for i, weights in result.items()}
    about = {"operations": named, "classes": classes, "weights": weights}
    return routes.draw(exp, result), about


def _residuals(exp: "Experiment", state: "TrainState") -> "Drawn":
    from dresnet_jax.figures import residuals

    result = residuals.scales(exp, state)
    print(residuals.table(result))
    return residuals.draw(result), {
        "scales": {i: a.tolist() for i, a in result.items()}
    }


if __name__ == "__main__":
    sys.exit(command.run())
