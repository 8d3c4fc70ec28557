"""The sheet for a GPU: tiny sizes, on what is here."""

import json

import pytest

from benchmarks import gpu


def sheet(capsys, directory, *flags):
    """The exit code, and what was printed."""
    code = gpu.command.run(["gpu", f"--out={directory}", *flags])
    result = capsys.readouterr()
    return code, result.out, result.err


@pytest.mark.slow
def test_every_row_is_written_as_soon_as_it_is_measured(capsys, tmp_path):
    sizes = ("--image_size=32", "--width=4", "--batch_sizes=2", "--seconds=0")
    code, output, errors = sheet(capsys, tmp_path, *sizes, "--minutes=30", "--json")
    assert code == 0, errors
    result = json.loads(output.splitlines()[-1])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert rows == result["rows"]
    ours = [(r["network"], r["form"]) for r in rows if r["by"] == "dresnet_jax"]
    assert ours[: len(gpu.NETWORKS)] == [(name, "") for name in gpu.NETWORKS]
    assert (gpu.FORMS_OF, "folded") in ours
    for row in rows:
        assert row["images_per_second"] == pytest.approx(2 / row["step_seconds"])
        assert row["memory_bytes"] > 0 or row["by"] == "PyTorch"
    page = (tmp_path / "README.md").read_text()
    assert all(why in page for why in result["left_out"])
    measured = {name for name, _ in gpu._tasks([2])} - {
        why.partition(":")[0] for why in result["left_out"]
    }
    assert len(measured) == len(rows)


def test_what_no_time_is_left_for_is_said(capsys, tmp_path):
    code, output, errors = sheet(capsys, tmp_path, "--minutes=0")
    assert code == 1
    assert "left out: resnet50, batch 128: no time left" in output
    assert errors.startswith("error: Nothing could be measured: resnet50, batch 128")
    assert (
        "- convnext_tiny, batch 256: no time left"
        in (tmp_path / "README.md").read_text()
    )


@pytest.mark.parametrize("sizes", ["", "0", "12,x", "-4"])
def test_batch_sizes_are_numbers(capsys, tmp_path, sizes):
    code, _, errors = sheet(capsys, tmp_path / "out", f"--batch_sizes={sizes}")
    assert code == 2
    assert "must be whole numbers above 0" in errors
    assert not (tmp_path / "out").exists()
