"""What README.md says of a study is what the study's report says."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

RESULTS = Path(ROOT, "docs/results")
STUDIES = sorted(path.with_name("report.json") for path in RESULTS.glob("*/plan.json"))


def test_readmes_rows_are_those_of_a_report():
    reports = "\n".join(path.with_suffix(".md").read_text() for path in STUDIES)
    lines = Path(ROOT, "README.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| (cnn|d?resnet)", line)]
    assert len(rows) > 3
    for row in rows:
        assert row in reports


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_a_study_is_whole(path):
    result = json.loads(path.read_text())
    runs = path.with_name("runs.csv").read_text().splitlines()[1:]
    assert len(runs) == sum(len(v["seeds"]) for v in result["variants"].values())
    page = path.with_suffix(".md").read_text()
    figures = re.findall(r"\]\((\w+\.png)\)", page)
    assert len(figures) > 3
    for name in ("plan.json", *figures):
        assert path.with_name(name).stat().st_size > 0


def test_growth_is_compared_for_as_much_training():
    result = json.loads((RESULTS / "growth/report.json").read_text())
    page = (RESULTS / "growth/report.md").read_text()
    assert (RESULTS / "growth/accuracy.png").stat().st_size > 0
    for one in result["variants"].values():
        assert len(one["test_accuracy"]["values"]) == result["seeds"] == 5
        assert all(0.94 < cost < 1.06 for cost in one["cost"])
    rows = [
        line
        for line in Path(ROOT, "docs/growth.md").read_text().splitlines()
        if re.match(r"\| (grown|its) ", line)
    ]
    assert len(rows) == 2 * len(result["variants"])
    for row in rows:
        assert row in page
