"""A third of a DResNet's connections is enough on Fashion-MNIST."""

import json

import numpy as np
import pytest
from etils import epath

from dresnet_jax.comparison import budgets
from dresnet_jax.training import run_config
from tests.acceptance.conftest import SEEDS
from tests.acceptance.small_run import last_json
from tests.conftest import run_command

# Those of docs/free.md.
TUNING = ("--config.train.num_epochs=3", "--config.optimizer.learning_rate=0.05")


@pytest.mark.slow
def test_a_third_of_the_connections_costs_a_fifth_of_a_point(train, dresnets, tmp_path):
    rows, configs = [], {}
    for seed, whole in zip(SEEDS, dresnets, strict=True):
        pruned = tmp_path / f"pruned_{seed}"
        code, output, errors = run_command(
            "prune",
            f"--workdir={whole['workdir']}",
            f"--to={pruned}",
            *("--keep=7", "--json"),
        )
        assert code == 0, errors
        result = last_json(output)
        assert (len(result["edges"]), len(result["removed"])) == (7, 14)
        edges = (
            str(result["edges"]).replace("[", "(").replace("]", ")").replace(" ", "")
        )
        topology = f"--config.model.connections.topology={edges}"
        tuned = train(
            *(tmp_path / f"tuned_{seed}", seed, *TUNING, topology),
            f"--config.init.workdir={pruned}",
        )
        # What as many epochs more would have given the network that is not pruned.
        longer = train(
            *(tmp_path / f"longer_{seed}", seed, *TUNING),
            f"--config.init.workdir={whole['workdir']}",
        )
        rows.append(
            {
                "edges": edges,
                "validation accuracy": result["validation_accuracy"],
                "test accuracy": {
                    name: report["test_accuracy"]
                    for name, report in (
                        ("whole", whole),
                        ("pruned and tuned", tuned),
                        ("whole, tuned", longer),
                    )
                },
            }
        )
        configs[f"pruned, seed {seed}"] = run_config.read_config(epath.Path(pruned))
    configs["dresnet18"] = run_config.read_config(epath.Path(dresnets[0]["workdir"]))
    plain = configs["dresnet18"].copy_and_resolve_references().unlock()
    plain.model.name = "resnet18"
    costs = budgets.measure(configs | {"resnet18": plain.lock()})
    base = costs["resnet18"]
    ratios = {
        name: {
            "step time": round(of.step_seconds / base.step_seconds, 3),
            "flops": round(of.flops / base.flops, 4),
            "parameters": round(of.params / base.params, 4),
        }
        for name, of in costs.items()
    }
    means = {
        name: float(np.mean([row["test accuracy"][name] for row in rows]))
        for name in rows[0]["test accuracy"]
    }
    print("\n" + json.dumps({"rows": rows, "means": means, "to resnet18": ratios}))
    assert means["pruned and tuned"] >= means["whole"] - 0.002
    whole = ratios.pop("dresnet18")
    for name in configs.keys() - {"dresnet18"}:
        for what, value in ratios[name].items():
            assert value < whole[what], (name, what)
