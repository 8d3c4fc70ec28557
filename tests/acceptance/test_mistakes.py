"""A person's mistakes: one clear line each, and nothing lost."""

import shutil
import signal
import time

import numpy as np
import pytest
from etils import epath

from dresnet_jax.training import checkpointing, digests, metrics
from tests.acceptance.small_run import (
    final_state,
    last_json,
    progress_and_rest,
    signal_at,
)
from tests.conftest import SMALL, run_command, run_process, start_command

BAD_VALUES = {
    "model.name=dresnet81": "Did you mean 'dresnet18'? Choices: cbam",
    "model.connections.gate=sigmoit": "Did you mean 'sigmoid'? Choices: gauss",
    "data.dataset=digit": "Did you mean 'digits'?",
    "optimizer.name=adam": "Did you mean 'adamw'?",
    "model.nmae=resnet18": "Unknown field of config.model 'nmae'. Did you mean 'name'?",
    "modle.name=resnet18": "Unknown field of config 'modle'. Did you mean 'model'?",
    "model.gate=gauss": "'gate'. Did you mean 'model.connections.gate'? Choices: act",
    "connections.gate=gauss": "'connections'. Did you mean 'model.connections.gate'?",
    "num_steps=5": "'num_steps'. Did you mean 'train.num_steps'? Choices: ",
    "train.learning_rate=1": "'optimizer.learning_rate' or 'search.learning_rate'?",
    "model=resnet18": "config.model is a group",
    "seed=many": "invalid literal",
    "data.batch_size=2000": "between 1 and the 1257 training examples",
    "model.stem=imagenet": "8x8 are too small for the strides",
    "model.connections.topology=((2, 5),)": "reader 2, source 5",
    "model.connections.topology=((3, 3),)": "reader 3, source 3",
    "model.connections.topology=dens": "Did you mean 'dense'?",
    "model.connections.initial_gate=1.0": "outside (0, 1)",
    "model.connections.initial_gate=0": "outside (0, 1)",
    "model.connections.sharpness=0": "k = 0.0 must be a number above 0",
    "train.num_steps=0": "num_steps = 0 must be in [1, 2147483647]",
    "train.steps_per_call=0": "steps_per_call = 0 must be in [1, 2147483647]",
    "train.report_on=best": "report_on = best needs a train.keep_best above 0",
    "data.mode=residnet": "Did you mean 'resident'? Choices: auto",
    "data.min_crop_area=2": "min_crop_area = 2.0 must be in [0, 1]",
    "data.validation_examples=5000": "between 1 and the 1436 that digits has",
    "growth.events=('widht',)": "Did you mean 'width'? Choices: connections",
    f"growth.events={('width',) * 9}": "need 46 epochs",
    "model.hidden=(8,)": "must be 8 whole numbers",
    "data.train_examples=5000": "between 1 and the 1257 that digits has",
}


def _train_with(override, directory):
    return (
        "train",
        "--config=configs/digits.py",
        f"--workdir={directory}",
        f"--config.{override}",
    )


@pytest.mark.parametrize("override", BAD_VALUES)
def test_a_wrong_value_is_one_clear_line(override, tmp_path):
    result = run_command(*_train_with(override, tmp_path / "run"))
    _assert_one_clear_line(result, BAD_VALUES[override])
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_fit_the_devices_is_one_clear_line(tmp_path):
    override = "data.batch_size=60"
    result = run_process(*_train_with(override, tmp_path / "run"), devices=8)
    message = "not divisible by the 8 devices; the nearest that is: 64"
    _assert_one_clear_line(result, message)
    assert not (tmp_path / "run").exists()


def _assert_one_clear_line(result, message):
    code, output, errors = result
    assert code == 2
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    print(f"\n{errors.strip()}")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "train",
            ["--workdir=new"],
            "--config is missing: give the path of a file, or one of cifar10,",
        ),
        ("train", ["--config=configs/digits.py"], "--workdir is missing"),
        (
            "train",
            ["--config=configs/digit.py"],
            "is no config 'configs/digit.py': give",
        ),
        ("train", ["--config=digit"], "There is no config 'digit': give the path of"),
        ("compare", ["--config=digit"], "or one of conditional, deep, digits, exits"),
        ("models", ["x*"], "Unknown model 'x*'. Choices: cbam_resnet50, cnn18,"),
        ("configs", ["digit"], "Unknown config 'digit'. Did you mean 'digits'?"),
        ("completion", ["fish"], "Choices: bash, zsh."),
        ("predict", ["--workdir=x"], "A word is missing: the image."),
        ("train", ["--config.seed=1"], "--config.seed needs --config"),
        ("train", ["--workdri=x"], "Unknown flag 'workdri'. Did you mean 'workdir'?"),
        (
            "train",
            ["--config=configs/digits.py", "--train.num_steps=5"],
            "flag 'train.num_steps'. Did you mean 'config.train.num_steps'?",
        ),
        ("train", ["--config=configs/digits.py", "--gate=gauss"], "s.gate'? Choices: "),
        ("train", ["digits"], "'digits' is not understood"),
        ("evaluate", [], "--workdir is missing"),
        ("evaluate", ["--workdir=configs"], "configs holds no run"),
        (
            "evaluate",
            ["--config=configs/digits.py"],
            "Unknown flag 'config'. Did you mean",
        ),
        ("evaluate", ["--workdir=x", "--split=val"], "train|validation|test"),
        ("benchmark", ["connections", "--model=cnn18"], "cnn18 has no connections"),
        ("benchmark", ["connections", "--forms="], "No form is named"),
        (
            "benchmark",
            ["connections", "--depths=2"],
            "Depth '2' must be a whole number",
        ),
        ("benchmark", ["conditional", "--rates=most"], "must be numbers in (0, 1]"),
        ("benchmark", ["conditional", "--rates=1.5"], "1.5 must be in (0, 1]"),
        ("benchmark", ["connections", "--projection=non"], "Did you mean 'none'?"),
        ("benchmark", ["connections", "--out=costs.jpg"], "must be the name of a .png"),
        (
            "benchmark",
            ["connections", "--model=dresnet18_seed", "--forms=stacked"],
            "Form 'stacked' cannot express projection 'per_edge'",
        ),
        (
            "benchmark",
            ["connections", "--model=dresnet18", "--peers", "--target=v5e:2x2"],
            "--peers of a model run here, not on a --target",
        ),
        ("prepare", [], "--dataset is missing"),
        ("prepare", ["--dataset=cifar"], "Unknown dataset 'cifar'"),
        ("prepare", ["--dataset=folder"], "folder needs --from_dir"),
        ("prepare", ["--dataset=imagenet2012"], "--from_dir must be the directory of"),
        (
            "train",
            ["--config=configs/folder.py", "--workdir=x", "--config.data.data_dir=y"],
            "folder is not prepared in y: run python -m dresnet_jax.prepare",
        ),
        (
            "plan",
            [
                "--config=configs/synthetic.py",
                "--config.data.num_examples=1000000000",
                "--config.data.mode=resident",
            ],
            "data.mode = resident is not possible: 2,929,687.5 MiB of images",
        ),
        (
            "plan",
            ["--target=v5e:2x2"],
            "--config is missing: give the path of a file, or one of cifar10,",
        ),
        (
            "plan",
            ["--config=configs/digits.py", "--target=v5e"],
            "--target=v5e must be cpu, or a TPU and how its chips lie",
        ),
        (
            "plan",
            ["--config=configs/digits.py", "--target=v7e:2x2"],
            "Unknown TPU 'v7e'. Did you mean 'v6e'? Choices: v4, v5e, v5p, v6e",
        ),
        (
            "plan",
            ["--config=configs/digits.py", "--batch_per_chip=8"],
            "--batch_per_chip needs a --target, such as v5e:4x4",
        ),
        (
            "plan",
            ["--config=configs/digits.py", "--sweep=8"],
            "--sweep needs a --target, such as v5e:4x4",
        ),
        (
            "plan",
            ["--config=configs/digits.py", "--target=v5e:2x2", "--sweep=8,x"],
            "--sweep=8,x must be whole numbers above 0",
        ),
        (
            "plan",
            ["--config=configs/digits.py", "--target=v5e:2x2", "--sweep=0"],
            "--sweep=0 must be whole numbers above 0",
        ),
        (
            "plan",
            ["--config=configs/digits.py", "--target=v5e:2x2", "--batch_per_chip=0"],
            "flag --batch_per_chip=0: ",
        ),
        (
            "plan",
            [
                "--config=configs/digits.py",
                "--target=v5e:2x2",
                "--sweep=8",
                "--batch_per_chip=8",
            ],
            "--batch_per_chip and --sweep exclude each other",
        ),
        (
            "plan",
            ["--config=configs/digits.py", "--target=v5e:2x2", "--no_compile"],
            "--no_compile prints nothing about a --target",
        ),
        ("preview", ["--config=configs/digits.py"], "--out=None must be the name of"),
        (
            "preview",
            ["--config=configs/digits.py", "--out=nowhere/x.png"],
            "there is no directory nowhere",
        ),
        ("benchmark", ["input", "--modes=stream"], "Did you mean 'streaming'?"),
        ("benchmark", [], "A word is missing: the subject"),
        ("benchmark", ["conections"], "Did you mean 'connections'?"),
        ("benchmark", ["connections", "--forms=foldd"], "Did you mean 'folded'?"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(command, arguments, message):
    _assert_one_clear_line(run_command(command, *arguments), message)


BAD_CONFIGS = {
    "def get_config(:": "SyntaxError: invalid syntax (mine.py, line 1)",
    "import nothing_of_this_name": "line 1: ModuleNotFoundError",
    "x = 1": "KeyError: 'get_config'",
    "def get_config():\n    return 3": "returns no ConfigDict",
    "from dresnet_jax import defaults\n\n\ndef get_config():\n"
    "    config = defaults.get_config()\n    config.model.widht = 3": "line 6: ",
    "from dresnet_jax import defaults\n\n\ndef get_config():\n"
    "    config = defaults.get_config()\n    config.model.connections.opening = 0.5": (
        "It is now model.connections.initial_gate."
    ),
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_a_config_file_with_a_mistake_is_one_clear_line(text, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    result = run_command("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    _assert_one_clear_line(result, BAD_CONFIGS[text])
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_prepared_is_one_clear_line(tmp_path):
    result = run_command(
        "train",
        "--config=configs/fashion_mnist.py",
        f"--config.data.data_dir={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    command = f"dresnet_jax.prepare --dataset=fashion_mnist --data_dir={tmp_path}"
    _assert_one_clear_line(result, command)
    assert not (tmp_path / "run").exists()


def test_two_trainings_in_one_workdir_do_not_mix(tmp_path):
    directory = epath.Path(tmp_path / "run")
    process = start_command("train", *SMALL, f"--workdir={directory}")
    while not metrics.read(directory):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    second = run_command("train", *SMALL, f"--workdir={directory}", "--overwrite")
    _assert_one_clear_line(second, "is in use: another process trains in it")
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "evaluate",
        "predict",
        "compare",
        "convert",
        "plan",
        "benchmark",
        "prepare",
        "preview",
    ],
)
def test_every_command_explains_itself(command):
    code, output, errors = run_command(command, "--help")
    assert code == 0
    assert f"python -m dresnet_jax.{command}" in output
    assert "--json:" in output
    assert errors == ""


def test_a_workdir_of_another_run_is_not_touched(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = run_command(
        "train", *SMALL, f"--workdir={tmp_path / 'run'}", "--config.model.width=9"
    )
    _assert_one_clear_line(result, "model.width is 8.0 there and 9.0 here")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    code, output, errors = run_command(
        "train",
        *SMALL,
        f"--workdir={tmp_path / 'run'}",
        "--config.model.name=cnn18",
        "--overwrite",
        "--json",
    )
    assert code == 0, errors
    assert last_json(output)["gates"] == {}
    assert not (tmp_path / "run" / "gates.png").exists()


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run"
    result = run_command("train", *SMALL, f"--workdir={path}")
    _assert_one_clear_line(result, "cannot be written: Not a directory")


def test_damaged_checkpoints_and_none_at_all(small_run, tmp_path):
    directory = epath.Path(tmp_path / "run")
    shutil.copytree(small_run, directory)
    expected = final_state(directory)
    for path in digests.files(directory / "checkpoints" / "40"):
        path.write_bytes(path.read_bytes()[:-10])
    code, output, errors = run_command("evaluate", f"--workdir={directory}", "--json")
    assert code == 0
    assert "Checkpoint 40 is damaged" in errors
    assert "Going back to checkpoint 36" in errors
    assert "Traceback" not in errors
    assert last_json(output)["step"] == 36
    print(f"\n{errors.strip()}")

    code, output, errors = run_command("train", *SMALL, f"--workdir={directory}")
    assert code == 0, errors
    assert "Resuming from the checkpoint of step 36." in output
    assert (directory / "damaged" / "40").exists()
    for a, b in zip(expected, final_state(directory), strict=True):
        np.testing.assert_array_equal(a, b)

    (directory / "checkpoints").rmtree()
    result = run_command("evaluate", f"--workdir={directory}")
    _assert_one_clear_line(result, "holds no checkpoint: train it first")


def test_a_loss_that_is_not_finite_fails_the_run(tmp_path):
    code, _, errors = run_command(
        "train",
        *SMALL,
        f"--workdir={tmp_path / 'run'}",
        "--config.optimizer.learning_rate=1e30",
    )
    assert code == 1
    _, (last,) = progress_and_rest(errors)
    assert last.startswith("error: At step ")
    print(f"\n{last}")


@pytest.mark.parametrize("step", [0, 5])
def test_ctrl_c_saves_and_says_how_to_resume(step, tmp_path):
    directory = epath.Path(tmp_path / "run")
    process = start_command("train", *SMALL, f"--workdir={directory}")
    errors = signal_at(process, directory, step, signal.SIGINT)
    assert process.returncode == 130
    _, (last,) = progress_and_rest(errors)
    assert last.startswith("interrupted after step ")
    saved = int(last.split()[3].rstrip(","))
    assert checkpointing.steps(directory)[0] == saved
    print(f"\n{last}")
