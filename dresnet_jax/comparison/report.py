"""Reports a comparison: figures for programs, tables and sentences for people."""

import base64
import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import ml_collections
import numpy as np
from etils import epath

from dresnet_jax.comparison import findings, plots, statistics
from dresnet_jax.comparison.grid import Plan, Run
from dresnet_jax.connections import gate_values
from dresnet_jax.errors import RunFailedError
from dresnet_jax.figures import pictures
from dresnet_jax.models import zoo
from dresnet_jax.training import json_files, run_config

# What is compared besides the test accuracy, of the main variant alone.
_MORE_METRICS = ("train_loss", "overfit")


def report(
    config: ml_collections.ConfigDict,
    plan: Plan,
    finished: Sequence[Run],
    failed: Mapping[str, str],
    command: str,
) -> dict[str, Any]:
    """Returns the figures of a comparison, of JSON's types.

    `failed` says why runs did not end well, by directory, and `command` is the command
    line that made the comparison.

    Raises:
      RunFailedError: no run of the main variant or of the reference ended well.
    """
    by_variant = {
        name: [run for run in finished if run.variant == name] for name in plan.variants
    }
    for name in (config.main, config.reference):
        if not by_variant[name]:
            raise RunFailedError(f"No run of {name} ended well: {dict(failed)}.")
    variants = {
        name: _variant(plan, name, runs, config.target_accuracy)
        for name, runs in by_variant.items()
        if runs
    }
    compared = _comparisons(config, plan, variants)
    result = {
        "question": config.question,
        "answer": _answer(config, plan, variants, compared),
        "command": command,
        "dataset": config.base.data.dataset,
        "main": config.main,
        "references": dict(plan.references),
        "first_seed": config.first_seed,
        "seeds": config.seeds,
        "other_seeds": config.other_seeds,
        "machine": plan.machine,
        "together": plan.together.description,
        "target_accuracy": config.target_accuracy,
        "variants": variants,
        "comparisons": compared,
        "failed": dict(failed),
        "versions": finished[0].report["versions"],
        "config": run_config.plain(config),
    }
    return json_files.finite(result | {"findings": findings.findings(result)})


def _variant(
    plan: Plan, name: str, runs: Sequence[Run], target: float
) -> dict[str, Any]:
    cost = plan.costs[name]
    steps = [_step_of(run, target) for run in runs]
    reached = [step * cost.step_seconds for step in steps if step is not None]
    estimate = statistics.summary
    reported = {
        name: [run.report[name] for run in runs]
        for name in ("test_accuracy", "val_accuracy", "test_loss", "reported_step")
    }
    losses = [_last(run, "train_loss") for run in runs]
    trained = [_last(run, "train_accuracy") for run in runs]
    overfit = list(np.subtract(trained, reported["test_accuracy"]))
    result: dict[str, Any] = {
        **dataclasses.asdict(cost),
        "steps": runs[0].report["steps"],
        "seeds": [run.seed for run in runs],
        "test_accuracy": estimate(reported["test_accuracy"], statistics.SHARE),
        "val_accuracy": estimate(reported["val_accuracy"], statistics.SHARE),
        "test_loss": estimate(reported["test_loss"], statistics.NOT_NEGATIVE),
        "train_loss": estimate(losses, statistics.NOT_NEGATIVE),
        "train_accuracy": estimate(trained, statistics.SHARE),
        "overfit": estimate(overfit),
        "reported_step": reported["reported_step"],
        "reached_target": len(reached),
        "seconds_to_target": estimate(reached) if reached else None,
    }
    if any("gates" in line for line in runs[0].lines):
        model = plan.variants[name].model
        last_quarter = [_late_drift(run) for run in runs]
        result |= {
            "gate": model.connections.gate,
            "gate_drift": estimate([run.report["gate_drift"] for run in runs]),
            "late_drift": estimate(last_quarter),
            "solid": bool(np.mean(last_quarter) < findings.SOLID),
            "gates": plots.mean_gates(runs)[1][-1],
        }
        sharpness = [run.report["gate_sharpness"] for run in runs]
        if None not in sharpness:
            result["sharpness_at_start"] = model.connections.sharpness
            result["gate_sharpness"] = estimate(sharpness)
    return result


def _step_of(run: Run, target: float) -> int | None:
    """The first evaluated step with such a validation accuracy."""
    lines = (line for line in run.lines if line.get("val_accuracy", -1.0) >= target)
    return next((line["step"] for line in lines), None)


def _last(run: Run, name: str) -> float:
    return [line[name] for line in run.lines if name in line][-1]


def _late_drift(run: Run) -> float:
    """Mean change of F(w) in the last quarter of a run."""
    gates = [(line["step"], line["gates"]) for line in run.lines if "gates" in line]
    last_step, last = gates[-1]
    before = [result for step, result in gates if step <= 0.75 * last_step][-1]
    return gate_values.drift(before, last)


def _comparisons(
    config: ml_collections.ConfigDict, plan: Plan, variants: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Compares the main variant with each reference, others with that of equal size."""
    usual, accuracy = _usual_budget(plan), "test_accuracy"
    asked = [(config.main, budget, accuracy) for budget in plan.references]
    for name in variants:
        if name not in (config.main, *plan.references.values()):
            is_connected = zoo.MODELS[plan.variants[name].model.name].connected
            asked.append((name, usual if is_connected else "steps", accuracy))
    asked += [(config.main, usual, metric) for metric in _MORE_METRICS]
    rows = []
    for name, budget, metric in asked:
        reference = plan.references[budget]
        ours, theirs = (
            dict(zip(variants[n]["seeds"], variants[n][metric]["values"], strict=True))
            if n in variants
            else {}
            for n in (name, reference)
        )
        seeds = sorted(ours.keys() & theirs.keys())
        if not seeds:
            continue
        result = statistics.paired(
            *([of[seed] for seed in seeds] for of in (ours, theirs))
        )
        ratio = plan.costs[name].step_seconds / plan.costs[reference].step_seconds
        rows.append(
            {
                "variant": name,
                "reference": reference,
                "budget": budget,
                "metric": metric,
                "seeds": len(seeds),
                "difference": result.estimate.mean,
                "low": result.estimate.low,
                "high": result.estimate.high,
                "p": result.p,
                "effect": result.effect,
                "step_time_ratio": ratio,
            }
        )
    corrected = statistics.holm([row["p"] for row in rows])
    return [row | {"p_corrected": p} for row, p in zip(rows, corrected, strict=True)]


def _usual_budget(plan: Plan) -> str:
    """That of the reference which variants are compared with, if with only one."""
    return "parameters" if "parameters" in plan.references else "steps"


def _answer(
    config: ml_collections.ConfigDict,
    plan: Plan,
    variants: Mapping[str, Any],
    compared: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Two sentences: at equal size, and at equal time."""
    rows = {
        row["budget"]: row
        for row in compared
        if (row["variant"], row["metric"]) == (config.main, "test_accuracy")
    }
    accuracy = variants[config.main]["test_accuracy"]["mean"]
    sentences = []
    for budget in (_usual_budget(plan), "time"):
        if budget not in rows:
            continue
        row = rows[budget]
        points = 100 * row["difference"]
        way = "above" if points >= 0 else "below"
        what = "training time" if budget == "time" else budget
        sentences.append(
            f"With equal {what} (a step takes {row['step_time_ratio']:.2f} times as "
            f"long), the mean test accuracy of {config.main}, {accuracy:.2%}, is "
            f"{abs(points):.2f} points {way} that of {config.reference}: "
            f"{findings.verdict(row)}."
        )
    return sentences


def plan_table(plan: Plan) -> str:
    """Returns what each variant costs."""
    lines = [f"{'':34s}{'parameters':>12s}{'MFLOP a step':>14s}{'ms a step':>11s}"]
    lines += [
        f"{name:34s}{cost.params:12,d}{cost.flops / 1e6:14,.1f}"
        f"{1000 * cost.step_seconds:11.1f}"
        for name, cost in plan.costs.items()
    ]
    return "\n".join(lines)


def table(result: Mapping[str, Any]) -> str:
    """Formats accuracies and comparisons, for a terminal."""
    lines = [f"{'test accuracy, %':34s}{'mean':>8s}{'95 % interval':>18s}{'seeds':>7s}"]
    for name, variant in result["variants"].items():
        estimate = variant["test_accuracy"]
        lines.append(
            f"{name:34s}{statistics.percent(estimate['mean']):>8s}"
            f"{statistics.percent_interval(estimate):>18s}"
            f"{estimate['runs']:7d}"
        )
    lines += [
        "",
        f"{'paired difference, points':60s}{'mean':>8s}{'95 % interval':>18s}"
        f"{'p':>8s}{'corrected':>11s}",
    ]
    for row in accuracies(result):
        p, corrected = (
            "-" if row[name] is None else f"{row[name]:.3f}"
            for name in ("p", "p_corrected")
        )
        lines.append(
            f"{row['variant'] + ' - ' + row['reference']:60s}"
            f"{statistics.percent(row['difference'], '+'):>8s}"
            f"{statistics.percent_interval(row, '+'):>18s}{p:>8s}{corrected:>11s}"
        )
    return "\n".join(lines)


def accuracies(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the comparisons of test accuracy."""
    return [row for row in result["comparisons"] if row["metric"] == "test_accuracy"]


def write(
    result: Mapping[str, Any], finished: Sequence[Run], directory: epath.Path
) -> None:
    """Writes report.json, runs.csv, the figures, report.html and report.md."""
    json_files.write_json(directory / "report.json", result)
    (directory / "runs.csv").write_text(_csv(finished))
    figures = plots.figures(result, finished)
    addresses = []
    for figure in figures:
        path = directory / f"{figure.name}.png"
        pictures.save(figure.figure, path)
        image = base64.b64encode(path.read_bytes()).decode()
        addresses.append(f"data:image/png;base64,{image}")
    loader = jinja2.PackageLoader("dresnet_jax.comparison", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=lambda name: str(name).endswith(".html"),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "p": lambda p: "-" if p is None else findings.p_in_words(p),
        "percent": statistics.percent,
        "interval": statistics.percent_interval,
    }
    gates = {}
    for name, variant in result["variants"].items():
        if "gates" in variant:
            runs = [run for run in finished if run.variant == name]
            steps, means = plots.mean_gates(runs)
            gates[name] = {"steps": steps, "gates": means}
    common = {"report": result, "accuracies": accuracies(result)}
    html = environment.get_template("comparison.html").render(
        **common,
        alpha=findings.ALPHA,
        solid=findings.SOLID,
        gates=gates,
        figures=list(zip(figures, addresses, strict=True)),
    )
    (directory / "report.html").write_text(html)
    text = environment.get_template("comparison.md").render(**common, figures=figures)
    (directory / "report.md").write_text(text)


def _csv(finished: Sequence[Run]) -> str:
    of_report = (
        *("reported_step", "val_accuracy", "test_accuracy"),
        *("val_loss", "test_loss", "params", "steps"),
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "seed", *of_report])
    for run in finished:
        figures = (run.report[name] for name in of_report)
        writer.writerow([run.variant, run.seed, *figures])
    return text.getvalue()
