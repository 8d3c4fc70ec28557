"""Raw images are classified as the test split's are, and bad ones are named."""

import json
import shutil
import subprocess
import sys

import cv2
import pytest
from etils import epath

from dresnet_jax.data import catalog, sources
from dresnet_jax.training import (
    checkpointing,
    evaluation,
    experiment,
    run_config,
    workdir,
)
from tests.acceptance.small_run import last_json, progress_and_rest
from tests.conftest import ROOT, run_command

COUNT = 100


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """A run that was trained, and a directory of images of its test split."""
    directory = tmp_path_factory.mktemp("predict")
    shutil.copytree(small_run, directory / "run")
    examples = sources.open_splits(catalog.DATASETS["digits"], "")["test"]
    (directory / "images").mkdir()
    for number in range(COUNT):
        path = directory / "images" / f"{number:03d}.png"
        assert cv2.imwrite(str(path), examples.images[number])
    return directory


def test_a_run_writes_nothing_that_overwrite_would_refuse(small_run):
    assert not list(workdir.strangers(epath.Path(small_run)))


def test_raw_images_are_classified_as_evaluation_does(run):
    code, output, errors = run_command(
        "predict", f"--workdir={run / 'run'}", run / "images", "--json"
    )
    assert code == 0, errors
    result = [x["top"][0]["label"] for x in last_json(output)["predictions"]]
    exp = experiment.build(run_config.read_config(epath.Path(run / "run")))
    abstract = exp.create_state(abstract=True)
    state = checkpointing.restore(epath.Path(run / "run"), abstract).state
    evaluated = evaluation.evaluate(exp, state, exp.open_splits()["test"])
    print(f"\n{COUNT} raw images, {len(set(result))} classes: the same predictions")
    assert len(set(result)) > 1
    assert result == evaluated.predictions[:COUNT].tolist()
    top = last_json(output)["predictions"][0]["top"]
    assert len(top) == 3
    assert [x["probability"] for x in top] == sorted(
        (x["probability"] for x in top), reverse=True
    )


def test_bad_images_are_named_and_the_others_classified(run, tmp_path):
    good = run / "images" / "000.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:50])
    cv2.imwrite(
        str(tmp_path / "large.jpg"), cv2.resize(cv2.imread(str(good)), (90, 70))
    )
    (tmp_path / "notes.txt").write_text("no image")
    code, output, errors = run_command(
        *("predict", f"--workdir={run / 'run'}", tmp_path, good, "none.png"),
        *("--top=20", "--json"),
    )
    assert code == 1
    result = last_json(output)
    assert [x["image"] for x in result["predictions"]] == [
        str(tmp_path / "large.jpg"),
        str(good),
    ]
    assert sum(x["probability"] for x in result["predictions"][0]["top"]) == (
        pytest.approx(1, abs=1e-5)
    )
    assert [x["image"] for x in result["unreadable"]] == [
        str(tmp_path / "cut.png"),
        "none.png",
    ]
    _, lines = progress_and_rest(errors)
    assert lines.pop(0).endswith("no images by their names, passed over: 1")
    assert lines[0].startswith(f"{tmp_path / 'cut.png'} cannot be read: ")
    assert lines[-1] == "error: 2 of 4 are not answered."
    assert len(lines) == 3


def test_a_list_on_standard_input_is_read(run):
    process = subprocess.run(
        [
            *(sys.executable, "-m", "dresnet_jax.predict", "-", "--json"),
            f"--workdir={run / 'run'}",
        ],
        input=f"{run / 'images' / '007.png'}\n",
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    (prediction,) = json.loads(process.stdout.splitlines()[-1])["predictions"]
    assert prediction["image"].endswith("007.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "A word is missing: the image"),
        (["x.png", "--top=0"], "0 is not a positive integer"),
        (["empty"], "Directory empty holds no image: .bmp"),
    ],
)
def test_a_wrong_word_is_one_clear_line(run, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = [str(tmp_path / x) if x == "empty" else x for x in arguments]
    code, output, errors = run_command("predict", f"--workdir={run / 'run'}", *places)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert message.replace("empty", str(tmp_path / "empty")) in errors
