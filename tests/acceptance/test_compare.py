"""A comparison ends with the same numbers, in a page that a browser shows."""

import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from tests.acceptance.small_run import last_json
from tests.conftest import run_command, start_command

SMALL_STUDY = (
    "--config=configs/compare/digits.py",
    "--config.base.model.width=4",
    "--config.base.model.blocks_per_stage=(1, 1, 1, 1)",
    "--config.base.train.num_epochs=4",
    "--config.seeds=2",
    "--config.together=2",
    "--config.budgets=('parameters',)",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Signals, and the exit codes of a comparison that gets them.
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A comparison that was killed when all was measured and nothing trained."""
    directory = tmp_path_factory.mktemp("compare") / "planned"
    process = start_command("compare", *SMALL_STUDY, f"--workdir={directory}")
    while not (directory / "plan.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    shutil.rmtree(directory / "runs", ignore_errors=True)
    return directory


@pytest.fixture(scope="module")
def study(planned):
    """The same, to its end: what it printed, and where it lies."""
    directory = planned.parent / "whole"
    shutil.copytree(planned, directory)
    code, output, errors = run_command(
        "compare", *SMALL_STUDY, f"--workdir={directory}", "--json"
    )
    assert code == 0, errors
    return output, directory


def _logged(directory):
    """The lines that all runs of a comparison have logged."""
    logs = (directory / "runs").glob("*/*/metrics.jsonl")
    return sum(log.read_bytes().count(b"\n") for log in logs)


def test_signals_change_no_number(planned, study):
    _, whole = study
    directory = planned.parent / "killed"
    shutil.copytree(planned, directory)
    # After so many of the lines that the runs log, one in each quarter but the last.
    total, chance = _logged(whole), random.Random(0)
    quarters = [total * number // 4 for number in range(len(CODES) + 1)]
    lines = [chance.randrange(a, b) + 1 for a, b in itertools.pairwise(quarters)]
    for line, (number, code) in zip(lines, CODES.items(), strict=True):
        process = start_command(
            "compare", *SMALL_STUDY, "--config.at_once=2", f"--workdir={directory}"
        )
        while _logged(directory) < line:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode == code, errors
    code, _, errors = run_command(
        "compare", *SMALL_STUDY, f"--workdir={directory}", "--json"
    )
    assert code == 0, errors
    expected, result = (
        json.loads((place / "report.json").read_text()) for place in (whole, directory)
    )
    expected.pop("command")
    result.pop("command")
    print(f"\nended after {lines} of {total} lines: the same report")
    assert result == expected
    tables = [(place / "runs.csv").read_text() for place in (whole, directory)]
    assert tables[0] == tables[1]


def test_a_comparison_leaves_what_it_promises(study):
    output, directory = study
    result = last_json(output)
    assert result == json.loads((directory / "report.json").read_text())
    assert [len(v["seeds"]) for v in result["variants"].values()] == [2, 2, 2]
    for name in ("accuracy", "curves", "splits", "drift", "gate_functions"):
        assert (directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for sentence in result["answer"]:
        assert sentence in output
    again = run_command("compare", *SMALL_STUDY, f"--workdir={directory}")
    assert "6 runs were done before" in again[1]


def test_seeds_can_be_added_and_nothing_else_changed(study, tmp_path):
    _, whole = study
    directory = tmp_path / "more"
    shutil.copytree(whole, directory)
    changed = (*SMALL_STUDY, "--config.target_accuracy=0.5")
    code, _, errors = run_command("compare", *changed, f"--workdir={directory}")
    assert code == 2
    assert "target_accuracy is 0.9" in errors or "target_accuracy is 0.95" in errors
    more = (*SMALL_STUDY, "--config.seeds=3")
    code, output, errors = run_command("compare", *more, f"--workdir={directory}")
    assert code == 0, errors
    assert "6 runs were done before" in output
    assert "ended    9 of 9: " in output or "ended    7 to 9 of 9: " in output


def test_a_browser_shows_the_page(study, tmp_path):
    """Its slider moves the map of the gates, and nothing is written to the console."""
    browser = next((b for b in BROWSERS if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    _, directory = study
    move = """<script>
    const seen = [];
    for (const place of [0, Number(epoch.max)]) {
      epoch.value = place;
      epoch.dispatchEvent(new Event("input"));
      seen.push(document.getElementById("step").textContent + " " +
                document.querySelector("#gates td").textContent);
    }
    const wide = document.documentElement.scrollWidth > window.innerWidth;
    document.body.append("SEEN " + seen.join(" | ") + (wide ? " TOO WIDE" : " FITS"));
    </script></body>"""
    page = (directory / "report.html").read_text()
    moved = tmp_path / "moved.html"
    moved.write_text(page.replace("</body>", move))
    arguments = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
    )
    shown = subprocess.run(
        [browser, *arguments, "--window-size=400,800", "--dump-dom", moved.as_uri()],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr
    (result,) = re.findall(r"SEEN ([^<]*)", shown.stdout.rsplit("</script>", 1)[1])
    seen = result.strip()
    first, last = seen.removesuffix(" FITS").split(" | ")
    print(f"\nthe first gate at step and F(w): {first}, {last}")
    assert first == "0 0.50"
    assert last.split()[0] == str(4 * 19)
    assert last != first
    assert seen.endswith(" FITS")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/digits.py"], "--config is that of a run"),
        (["--config=configs/compare/digit.py"], "or one of conditional, deep, digits,"),
        (["--config=configs/compare/digits.py"], "--workdir is missing"),
    ],
)
def test_a_wrong_word_is_one_clear_line(arguments, message):
    place = [] if "workdir" in message else ["--workdir=/nowhere"]
    code, output, errors = run_command("compare", *arguments, *place)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert message in errors
