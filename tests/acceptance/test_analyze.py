"""Gradients drawn from a config and from runs; a wrong word is one clear line."""

import pytest

from tests.acceptance.small_run import last_json
from tests.conftest import SMALL, run_command


def test_gradients_of_stacks_and_of_a_run_are_drawn(small_run, tmp_path):
    run, picture = small_run, tmp_path / "flow.png"
    code, output, errors = run_command(
        "analyze",
        "gradients",
        "--config=configs/digits.py",
        "--config.model.width=4",
        "--config.model.blocks_per_stage=(8,)",
        "--seeds=2",
        f"--runs={run}",
        f"--out={picture}",
        "--json",
    )
    assert code == 0, errors
    start, of_run = last_json(output)["norms"].values()
    ratios = {
        name: sorted(norms[0] / norms[-1] for norms in seeds)
        for name, seeds in start.items()
    }
    print(
        "\n8 blocks: the gradient at the first, divided by that at the last: "
        f"{ {name: [round(x, 2) for x in result] for name, result in ratios.items()} }"
    )
    assert [len(result) for result in ratios.values()] == [2, 2, 2]
    assert ratios["plain"][0] > 2 * ratios["residual"][-1]
    before, after = of_run.values()
    assert len(before[0]) == len(after[0])
    assert before != after
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_graph_of_a_run_is_drawn(tmp_path):
    run, picture = tmp_path / "run", tmp_path / "graph.png"
    graph = (
        "--config.model.connections.base=learned",
        "--config.model.connections.topology=((1,0),(3,0),(4,1),(5,3),(5,4))",
    )
    code, _, errors = run_command("train", *SMALL, *graph, f"--workdir={run}")
    assert code == 0, errors
    code, output, errors = run_command(
        "analyze", "graph", f"--workdir={run}", f"--out={picture}", "--json"
    )
    assert code == 0, errors
    assert "blocks: 3, connections: 5" in output
    edges = last_json(output)["edges"]
    assert [edge[:2] for edge in edges] == [[1, 0], [3, 0], [4, 1], [5, 3], [5, 4]]
    assert all(0 < gate < 1 for _, _, gate in edges)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (run / "gates.png").exists()


def test_routes_and_residuals_of_a_run_are_drawn(tmp_path):
    run = tmp_path / "run"
    mixed = (
        "--config.model.name=mixed18",
        "--config.model.mixture.weights=routed",
        "--config.model.mixture.operations=('none','conv3','pool')",
        "--config.model.residual_scale=channel",
        "--config.model.residual_start=0.1",
    )
    code, _, errors = run_command("train", *SMALL, *mixed, f"--workdir={run}")
    assert code == 0, errors
    result = {}
    for subject in ("routes", "residuals"):
        picture = tmp_path / f"{subject}.png"
        code, output, errors = run_command(
            "analyze", subject, f"--workdir={run}", f"--out={picture}", "--json"
        )
        assert code == 0, errors
        assert picture.read_bytes().startswith(b"\x89PNG")
        result[subject] = last_json(output)
    blocks = ["1", "2", "3", "4"]
    assert (
        list(result["routes"]["weights"])
        == list(result["residuals"]["scales"])
        == blocks
    )
    for of_classes in result["routes"]["weights"].values():
        assert [sum(row) for row in of_classes] == pytest.approx([1] * 10, abs=1e-4)
    scales = result["residuals"]["scales"]
    assert [len(scales[i]) for i in blocks] == [8, 16, 32, 64]
    assert all(0 < abs(a - 0.1) < 0.5 for of_block in scales.values() for a in of_block)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "A word is missing: the subject"),
        (["gradient"], "Unknown analysis 'gradient'. Did you mean 'gradients'?"),
        (["gradients"], "--out=None must be the name of a .png file"),
        (["gradients", "--out=flow.jpg"], "--out=flow.jpg must be the name of a .png"),
        (["gradients", "--out=none/flow.png"], "there is no directory none"),
        (["gradients", "--out=flow.png"], "--config is missing"),
        (["graph", "--out=graph.png"], "--workdir is missing"),
        (
            [
                *("gradients", "--config=configs/digits.py"),
                *("--out=flow.png", "--runs=nowhere"),
            ],
            "nowhere holds no run",
        ),
        (["gradients", "--out=flow.png", "--seeds=0"], "seeds"),
    ],
)
def test_a_wrong_word_is_one_clear_line(arguments, message):
    code, output, errors = run_command("analyze", *arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
