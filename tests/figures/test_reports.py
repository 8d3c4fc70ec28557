"""Tables and pictures hold the figures they are given."""

import dataclasses

import matplotlib.image
import numpy as np
import pytest
from etils import epath

from dresnet_jax.costs import plots, tables
from dresnet_jax.costs.connection_costs import Row
from dresnet_jax.figures import evaluation_tables, pictures, run
from tests.conftest import json_lines

GATES = {3: {1: 0.25}, 5: {1: 0.5, 3: -1.75}}


def test_the_gate_table_has_a_cell_per_edge():
    head, *rows = run.gate_table(GATES).splitlines()
    assert head.split() == ["F(w)", "from", "1", "from", "2", "from", "3"]
    assert [row.split() for row in rows] == [
        ["block", "3", "0.250"],
        ["block", "5", "0.500", "-1.750"],
    ]
    assert rows[1].index("-1.750") > head.index("from  2")


def test_the_gate_table_of_a_free_graph_has_its_ends():
    head, *rows = run.gate_table({1: {0: 1.0}, 3: {0: 0.5, 1: 0.25}}).splitlines()
    assert head.split() == ["F(w)", "stem", "from", "1"]
    assert [row.split() for row in rows] == [
        ["block", "1", "1.000"],
        ["head", "0.500", "0.250"],
    ]
    assert {len(row) for row in rows} <= {18, 27}
    assert len(head) == 27


def test_accuracy_per_class_and_confusion():
    labels, predictions = np.asarray([0, 0, 1, 1, 1]), np.asarray([0, 1, 1, 1, 0])
    result = evaluation_tables.per_class(labels, predictions, ("a", "b", "never"))
    assert result["confusion"] == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert result["class_accuracy"] == {"a": 0.5, "b": 2 / 3, "never": None}


ROW = Row(
    "m",
    "folded",
    8,
    flops_ratio=1.081,
    bytes_ratio=1.29,
    temp_ratio=1.24,
    saved_ratio=1.02,
    step_ratio=1.05,
    step_ratio_range=(0.98, 1.1),
    step_seconds=0.0125,
)


def test_the_cost_table_shows_each_ratio():
    _, text = tables.connection_cost_table([ROW]).splitlines()
    for figure in ("8 blocks: folded", "1.081", "1.290", "1.240", "1.020", "12.5"):
        assert figure in text
    assert "0.98..1.10" in text
    estimated = dataclasses.replace(ROW, step_ratio_range=None, temp_ratio=None)
    cells = tables.connection_cost_table([estimated]).splitlines()[1].split()
    assert cells[-3:] == ["1.050", "estimate", "12.5"]


def test_where_a_models_bytes_go_is_a_second_table():
    rows = [
        dataclasses.replace(ROW, form="none", traffic={"forward, block": 2e6}),
        dataclasses.replace(ROW, traffic={"forward, block": 3e6, "small": 10.0}),
    ]
    *_, heading, line = tables.connection_cost_table(
        rows, with_traffic=True
    ).splitlines()
    assert heading.split()[-2:] == ["none", "folded"]
    assert line.split() == ["forward,", "block", "2.0", "3.0"]


@pytest.mark.parametrize("depths", [(8,), (8, 16, 32)])
def test_costs_are_drawn_by_form_or_over_the_depth(tmp_path, depths):
    rows = [dataclasses.replace(ROW, depth=depth) for depth in depths]
    path = epath.Path(tmp_path) / "costs.png"
    pictures.save(plots.connection_costs(rows), path)
    assert matplotlib.image.imread(path).std() > 0.01


@pytest.mark.parametrize("gates", [GATES, None], ids=["gates", "no gates"])
def test_a_run_is_drawn_from_its_metrics(tmp_path, gates):
    lines = [{"step": s, "train_loss": 1 / s, "train_accuracy": 0.5} for s in (5, 10)]
    lines += [{"step": 10, "val_loss": 0.2, "val_accuracy": 0.6}]
    if gates:
        lines += [{"step": step, "gates": gates} for step in (0, 10)]
    (tmp_path / "metrics.jsonl").write_text(json_lines(lines))
    pictures = run.run_pictures(epath.Path(tmp_path))
    names = [path.name for path in pictures]
    expected = ["curves.png", "gates.png", "gate_functions.png"]
    assert names == [name for name in expected if gates or name != "gates.png"]
    for path in pictures:
        assert matplotlib.image.imread(path).std() > 0.01


def test_a_picture_that_cannot_be_written_is_left_out(tmp_path, monkeypatch, caplog):
    lines = [{"step": 5, "train_loss": 0.5}, {"step": 5, "gates": GATES}]
    (tmp_path / "metrics.jsonl").write_text(json_lines(lines))
    save = pictures.save

    def full(figure, path):
        path.write_bytes(b"half")
        if path.name == "gates.png":
            raise OSError(28, "No space left on device")
        save(figure, path)

    monkeypatch.setattr(pictures, "save", full)
    names = [path.name for path in run.run_pictures(epath.Path(tmp_path))]
    assert names == ["curves.png", "gate_functions.png"]
    assert not (tmp_path / "gates.png").exists()
    assert "gates.png cannot be written: No space left on device" in caplog.text


def test_the_gate_map_has_a_value_per_edge_and_the_identitys_whole_range():
    figure = run.gate_maps({"3": {"1": 0.5}}, {"3": {"1": -4.0}})
    start, end = (axis.images[0] for axis in figure.axes[:2])
    assert np.argwhere(~start.get_array().mask).tolist() == [[2, 0]]
    assert float(end.get_array()[2, 0]) == -4.0
    assert start.get_clim() == end.get_clim() == (-4.0, 1.0)
