"""A comparison's grid is fair, and its report says what the runs say."""

import html
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from configs.compare import common, digits
from dresnet_jax.comparison import (
    budgets,
    findings,
    grid,
    growth,
    progress,
    report,
    runner,
)
from dresnet_jax.errors import RunFailedError, UserError
from tests.conftest import ROOT


def study(**fields):
    config = digits.get_config().unlock()
    config.base.model.width = 4
    config.base.model.blocks_per_stage = (1, 1, 1, 1)
    config.base.train.num_steps = 4
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def ten_seeds():
    """The plan of ten seeds, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        return in_advance(patch, seeds=10)


def in_advance(monkeypatch, **fields):
    """A plan whose times are not measured."""

    def measure(configs):
        seconds = {"dresnet18": 0.03, "resnet18": 0.02}
        return {
            name: budgets.Costs(1000, 1e6, seconds[config.model.name], 0.0, 1.0)
            for name, config in configs.items()
        }

    monkeypatch.setattr(budgets, "measure", measure)
    monkeypatch.setattr(budgets, "measure_together", lambda *_: budgets.Together(1))
    return grid.plan(study(**fields), epath.Path("nowhere"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": 0}, "seeds = 0 must be above 0"),
        ({"other_seeds": 0}, "other_seeds = 0 must be above 0"),
        ({"together": 0}, "together = 0 must be above 0"),
        ({"first_seed": -1}, "first_seed = -1 must be from 0"),
        ({"main": "dresnt"}, "Unknown variant, as main, 'dresnt'. Did you mean 'dres"),
        ({"main": "resnet"}, "there is nothing to compare"),
        ({"budgets": ("steps",)}, "Unknown budget 'steps'.* Choices: flops, param"),
        ({"variants": {"x": {"modle": {}, "model": {"wdth": 3}}}}, "Did you mean 'wid"),
        ({"variants": {"x": {"model": {"width": "wide"}}}}, "variants.x.model.width ="),
        (
            {"variants": {"x": {"seed": {"y": 1}}}},
            "variants.x.seed.y: there is no group",
        ),
        ({"variants": {"x": {"model": {"name": "resnt18"}}}}, "Did you mean 'resnet18"),
    ],
)
def test_a_wrong_comparison_is_refused(monkeypatch, fields, message):
    with pytest.raises(UserError, match=message):
        in_advance(monkeypatch, **fields)


@pytest.mark.parametrize("count", [budgets.count_params, budgets.count_flops])
def test_the_reference_is_widened_to_the_same_budget(count):
    config = study()
    config.base.model.width = 16
    variants = {
        name: grid._changed(config.base, changes, name)
        for name, changes in config.variants.items()
    }
    expected = count(variants["dresnet"])
    result = budgets.widened(variants["resnet"], expected, count)
    print(f"\nwidth {result.model.width}: {count(result) / expected:.4f} of it")
    assert result.model.width > 16
    assert count(result) == pytest.approx(expected, rel=0.01)
    # Nothing else has changed.
    result.model.width = 16.0
    assert result.to_dict() == variants["resnet"].to_dict()


def test_a_budget_out_of_reach_is_refused():
    base = study().base
    with pytest.raises(UserError, match=r"No model.width from 1 to 16 of dresnet18"):
        budgets.widened(base, 1e12, budgets.count_params)


def test_the_plan_holds_all_runs_and_is_kept(monkeypatch, tmp_path):
    config = study(seeds=2)
    config.variants["gauss"] = common.dresnet("gauss")
    plan = in_advance(monkeypatch, seeds=2, variants=config.variants)
    assert plan.references == {
        "steps": "resnet",
        "parameters": "resnet, equal parameters",
        "flops": "resnet, equal flops",
        "time": "resnet, equal time",
    }
    assert plan.variants["resnet, equal time"].train.num_steps == 6
    config.other_seeds = 1
    runs = grid.runs(config, plan, epath.Path(tmp_path))
    assert len({run.directory for run in runs}) == len(runs) == 6 + 5
    assert [run.experiment.config.seed for run in runs] == [0] * 6 + [1] * 5
    assert [run.variant for run in runs].count("gauss") == 1
    grid.write_plan(plan, epath.Path(tmp_path))
    monkeypatch.setattr(budgets, "measure", None)
    again = grid.plan(config, epath.Path(tmp_path))
    assert again.costs == plan.costs
    for name, variant in plan.variants.items():
        assert again.variants[name].to_dict() == variant.to_dict()


def test_seeds_that_train_together_have_their_places(monkeypatch, tmp_path):
    fields = {"seeds": 3, "other_seeds": 2, "first_seed": 1, "budgets": ()}
    plan = in_advance(monkeypatch, **fields)
    result = grid.runs(study(**fields), plan, epath.Path(tmp_path))
    groups = [
        [(run.variant, run.seed) for run in group]
        for group in runner.grouped(result, 2)
    ]
    assert groups == [
        [("dresnet", 1)],
        [("resnet", 1)],
        [("dresnet", 2), ("dresnet", 3)],
        [("resnet", 2), ("resnet", 3)],
    ]


@pytest.mark.slow
def test_what_is_faster_is_measured():
    result = budgets.measure_together(study().base, 2)
    print(f"\n{result.description}")
    assert result.tried == 2
    assert result.seeds == (2 if result.ratio < 1 else 1)
    assert budgets.measure_together(study().base, 1) == budgets.Together(1)


def finished(variant, seed, accuracy, gates=None):
    versions = {"python": "3", "jax": "0"}
    values = dict.fromkeys(("val_accuracy", "test_accuracy"), accuracy)
    values |= dict.fromkeys(("val_loss", "test_loss"), 0.3) | {"params": 1, "steps": 8}
    values |= {"reported_step": 8, "gate_drift": 0.4, "versions": versions}
    values["gate_sharpness"] = 1.5
    lines = []
    for step in (0, 2, 4, 6, 8):
        if step:
            lines.append({"step": step, "train_loss": 1 / step, "train_accuracy": 0.9})
            line = {"step": step, "val_accuracy": accuracy * step / 8}
            lines.append(line | ({"gate_drift": step / 20} if gates else {}))
        if gates:
            gate = 0.5 + gates * step
            lines.append({"step": step, "gates": {"3": {"1": gate}}})
    return SimpleNamespace(variant=variant, seed=seed, report=values, lines=lines)


def planted(plan, gain, seeds=10):
    random = np.random.default_rng(0)
    result = []
    for seed in range(seeds):
        common_part = random.normal(0.9, 0.01)
        for name in plan.variants:
            own = random.normal(gain if name == "dresnet" else 0, 0.001)
            gates = (0.002 if seed else 0.004) if name == "dresnet" else None
            result.append(finished(name, seed, common_part + own, gates))
    return result


def test_no_two_variants_share_a_directory():
    names = [
        "lr 1",
        "LR-1",
        "lr 1 2",
        "a, equal time",
        "a: equal time",
        "+",
        "..",
        "x.",
    ]
    result = grid._directories(names)
    assert result == {
        "lr 1": "lr_1",
        "LR-1": "lr_1_2",
        "lr 1 2": "lr_1_2_2",
        "a, equal time": "a_equal_time",
        "a: equal time": "a_equal_time_2",
        "+": "variant",
        "..": "variant_2",
        "x.": "x.",
    }


@pytest.mark.parametrize(("gain", "is_clear"), [(0.004, True), (0.0, False)])
def test_the_report_says_what_was_planted(ten_seeds, tmp_path, gain, is_clear):
    plan = ten_seeds
    config, runs = study(seeds=10), planted(plan, gain)
    result = report.report(config, plan, runs, {"runs/x/3": "no number"}, "")
    rows = report.accuracies(result)
    assert [row["budget"] for row in rows] == list(plan.references)
    for row in rows:
        assert (row["p_corrected"] < findings.ALPHA) == is_clear
        assert row["p"] <= row["p_corrected"]
        assert row["difference"] == pytest.approx(gain, abs=0.001)
    assert len(result["answer"]) == 2
    for sentence, budget in zip(
        result["answer"], ("parameters", "training time"), strict=True
    ):
        assert sentence.startswith(f"With equal {budget}")
        assert ("a clear difference" in sentence) == is_clear
    dresnet = result["variants"]["dresnet"]
    assert dresnet["late_drift"]["mean"] == pytest.approx((9 * 0.004 + 0.008) / 10)
    assert dresnet["gates"]["3"]["1"] == pytest.approx(
        0.5 + 8 * (9 * 0.002 + 0.004) / 10
    )
    assert dresnet["solid"]
    assert dresnet["reached_target"] < 10
    directory = epath.Path(tmp_path)
    report.write(result, runs, directory)
    written = json.loads(
        (directory / "report.json").read_text(), parse_constant=pytest.fail
    )
    assert written == result
    rows = (directory / "runs.csv").read_text().splitlines()
    assert len(rows) == 1 + len(runs)
    page = (directory / "report.html").read_text()
    answers = [finding["answer"] for finding in result["findings"]]
    assert len(answers) == 5
    for word in (config.question, "runs/x/3: no number", *result["answer"], *answers):
        assert html.escape(word) in page.replace("&#39;", "&#x27;")
    assert "http" not in page
    text = (directory / "report.md").read_text()
    for word in (config.question, result["machine"], *result["answer"], *answers):
        assert word in text
    assert text.count("| dresnet |") == 1 + len(plan.references)
    assert "Of 1 connections 0 end at 0.75 or above and 0 below 0.25" in answers[-1]
    assert "dresnet from 1 to 1.500" in answers[-2]
    assert "dresnet 0.400 (0.004)" in answers[-3]
    table = report.table(result)
    assert table.count("\n") == 5 + 2 + 4
    mean = dresnet["test_accuracy"]["mean"]
    for shown in (table, page, text):
        assert f"{100 * mean:.2f}" in shown
        assert f"{mean:.4f}" not in shown


def test_one_seed_says_nothing_of_chance(monkeypatch, tmp_path):
    plan = in_advance(monkeypatch, seeds=1, budgets=())
    result = report.report(study(seeds=1), plan, planted(plan, 0.1, 1), {}, "")
    (row,) = report.accuracies(result)
    assert row["p"] is row["low"] is row["effect"] is None
    assert "a single seed says nothing" in result["answer"][0]
    report.write(result, planted(plan, 0.1, 1), epath.Path(tmp_path))
    assert "nan" not in report.table(result)


def test_seeds_that_differ_by_the_same_are_no_clear_difference():
    row = {"p_corrected": float("nan"), "seeds": 3, "low": None, "high": None}
    assert (
        findings.verdict(row)
        == "the same in all seeds, which says nothing about chance"
    )


def test_what_is_clear_only_before_the_correction_is_explained():
    row = {"seeds": 3, "low": 0.05, "high": 0.19, "p": 0.02, "p_corrected": 0.06}
    assert findings.verdict(row) == (
        "no clear difference over 3 seeds (95 % interval +5.00 to +19.00 and p = 0.020 "
        "of this comparison alone, but p = 0.060 corrected for all comparisons here, "
        "one of which may well look like that by chance)"
    )


def test_runs_that_all_failed_are_no_report(ten_seeds):
    with pytest.raises(
        RunFailedError, match=r"No run of dresnet ended well: .*'a': 'b'"
    ):
        report.report(study(), ten_seeds, [], {"a": "b"}, "")


def test_a_run_whose_loss_is_not_finite_is_reported(tmp_path, monkeypatch):
    wild = {"optimizer": {"learning_rate": 1e30, "clip_norm": 0.0}}
    variants = {"resnet": {"model": {"name": "resnet18"}} | wild, "dresnet": {}}
    fields = {"seeds": 1, "budgets": (), "variants": variants}
    plan = in_advance(monkeypatch, **fields)
    runs = grid.runs(study(**fields), plan, epath.Path(tmp_path))
    (run,) = [run for run in runs if run.variant == "resnet"]
    runner.train([run], 1)
    assert run.is_done
    result, failed = grid.read([run])
    assert result == []
    assert "the loss is nan" in failed[str(run.directory)]
    # Who asks for other runs does not get these.
    fields["variants"]["resnet"]["optimizer"]["learning_rate"] = 0.1
    others = in_advance(monkeypatch, **fields)
    with pytest.raises(UserError, match=r"learning_rate is 1e\+30 there and 0.1 here"):
        grid.runs(study(**fields), others, epath.Path(tmp_path))


def test_progress_names_each_run_and_estimates_what_is_left(
    monkeypatch, tmp_path, capsys
):
    fields = {"seeds": 2, "budgets": ()}
    plan = in_advance(monkeypatch, **fields)
    _, *missing = grid.runs(study(**fields), plan, epath.Path(tmp_path))
    assert [run.variant for run in missing] == ["resnet", "dresnet", "resnet"]
    clock = iter((0.0, 20.0, 50.0, 70.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    # 4 steps of each: 0.8, 1.2 and 0.8 seconds, and ten times as much in all.
    times = {"resnet": 0.2, "dresnet": 0.3}
    with progress.Progress(missing, 4, times) as shown:
        for run in missing:
            shown.started([run])
            if run is missing[1]:
                run.directory.mkdir(parents=True)
                (run.directory / grid.FAILED).write_text("{}")
            shown.ended([run], 25.0)
    assert capsys.readouterr().out.splitlines() == [
        "started  2 of 4: resnet, seed 0",
        "ended    2 of 4: resnet, seed 0, in 00:25; 00:50 left",
        "started  3 of 4: dresnet, seed 1",
        "ended    3 of 4: dresnet, seed 1, in 00:25, 1 of 1 failed; 00:20 left",
        "started  4 of 4: resnet, seed 1",
        "ended    4 of 4: resnet, seed 1, in 00:25; 00:00 left",
    ]


STUDIES = sorted(
    path.stem
    for path in Path(ROOT, "configs", "compare").glob("*.py")
    if path.stem not in ("__init__", "common")
)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_of_the_repository_can_be_planned(monkeypatch, name):
    module = importlib.import_module(f"configs.compare.{name}")
    assert f"--config=configs/compare/{name}.py" in module.__doc__
    config = module.get_config().unlock()
    if config.base.growth.events:
        growth.check(config)
        return
    config.budgets = ()
    costs = budgets.Costs(1000, 1e6, 0.03, 0.02, 0.04)
    monkeypatch.setattr(budgets, "measure", lambda result: dict.fromkeys(result, costs))
    monkeypatch.setattr(budgets, "measure_together", lambda *_: budgets.Together(1))
    plan = grid.plan(config, epath.Path("nowhere"))
    assert set(plan.variants) == set(config.variants)


def test_a_variant_may_change_any_field():
    changes = common.dresnet("gauss", initial_gate="1/n^2", topology=((3, 1),))
    config = study(variants={"x": changes | {"seed": 7}})
    result = grid._changed(config.base, config.variants.x, "x")
    assert result.model.connections.initial_gate == "1/n^2"
    assert result.model.connections.topology == ((3, 1),)
    assert result.seed == 7
    assert config.base.model.connections.initial_gate is None


def test_helpers_make_what_a_config_holds():
    fields = common.dresnet("gauss", initial_gate=0.1)
    assert fields["model"]["connections"] == {
        "gate": "gauss",
        "initial_gate": 0.1,
        "topology": "dense",
        "projection": "per_edge",
    }
