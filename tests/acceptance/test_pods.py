"""Many processes, long runs: the same result, whatever happens on the way."""

import json
import shutil
import signal
import statistics
import time

import jax
import numpy as np
import pytest
from etils import epath

from configs import synthetic
from dresnet_jax.errors import UserError
from dresnet_jax.training import checkpointing, digests, experiment, run_config
from tests.acceptance import soak
from tests.acceptance.small_run import (
    GENTLE,
    final_state,
    finish,
    last_step,
    process_flags,
    start_processes,
    start_processes_of,
    timeless_lines,
)
from tests.conftest import ROOT, SMALL, run_process

AXES = {
    "data": (),
    "fsdp": ("--config.sharding.fsdp=8",),
    "data x fsdp": ("--config.sharding.fsdp=2",),
}
LAYOUTS = [(1, 8), (2, 4), (4, 2)]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The run that the others are compared with: one process, all devices alike."""
    directory = tmp_path_factory.mktemp("layouts") / "one"
    arguments = (*SMALL, GENTLE, f"--workdir={directory}")
    code, _, errors = run_process("train", *arguments, devices=8)
    assert code == 0, errors
    return directory


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        pytest.param(
            layout,
            axes,
            # One of the cells is fast.
            marks=() if (place, i) == (1, 1) else pytest.mark.slow,
        )
        for place, layout in enumerate(LAYOUTS)
        for i, axes in enumerate(AXES)
        if (layout, axes) != ((1, 8), "data")
    ],
)
def test_every_layout_learns_the_same(one_process, tmp_path, layout, axes):
    directory = tmp_path / "run"
    arguments = (*SMALL, GENTLE, *AXES[axes])
    finish(start_processes(*layout, *arguments, workdir=directory))
    losses = [
        [line["train_loss"] for line in timeless_lines(run) if "train_loss" in line]
        for run in (one_process, directory)
    ]
    curve = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    expected, result = (
        final_state(run, only_params=True) for run in (one_process, directory)
    )
    scale = max(float(np.abs(x).max()) for x in expected)
    params = max(
        float(np.abs(a - b).max()) for a, b in zip(result, expected, strict=True)
    )
    print(
        f"\n{layout[0]} processes x {layout[1]} devices, {axes}: largest relative "
        f"difference of the loss {curve:.1e}, of a parameter {params / scale:.1e}"
    )
    assert len(losses[0]) == 40
    assert curve <= 1e-5
    assert params <= 1e-5 * scale


def test_a_signal_to_one_process_stops_and_saves_all(tmp_path):
    """In a first life, and in one whose steps are far from the number of its calls."""
    directory = tmp_path / "run"
    # So many steps that they are not over when JAX sees the signal, a second later; and
    # a checkpoint each, so that it comes while one is written.
    arguments = (
        *SMALL,
        "--config.train.num_steps=70",
        "--config.train.checkpoint_every_steps=1",
    )
    saved = 0
    for goal in (15, 25):
        processes = start_processes(2, 1, *arguments, workdir=directory)
        while last_step(directory) < goal:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        processes[1].send_signal(signal.SIGTERM)
        outputs = finish(processes, code=75)
        if saved:
            assert f"Resuming from the checkpoint of step {saved}." in outputs[0][0]
        (line,) = {
            line.split(", which is saved")[0]
            for _, errors in outputs
            for line in errors.splitlines()
            if line.startswith("error: told to stop")
        }
        saved = int(line.split()[-1])
        assert saved in soak.finished(directory)
    outputs = finish(start_processes(1, 2, *arguments, workdir=directory))
    assert f"Resuming from the checkpoint of step {saved}." in outputs[0][0]
    steps = [line["step"] for line in timeless_lines(directory) if "train_loss" in line]
    assert steps == list(range(1, 71))


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        pytest.param({"kills": 2, "change": 2, "seed": 1, "steps": 60}, 0),
        pytest.param(
            {"kills": 50, "change": 51, "seed": 0, "steps": 2000},
            0,
            marks=pytest.mark.slow,
        ),
        # Other numbers of devices add up in other orders. At the rate of the others,
        # and by the CPU, runs of 400 steps differ by more even where none is killed.
        pytest.param(
            {
                "kills": 10,
                "change": 0,
                "seed": 1,
                "steps": 400,
                "rate": "--config.optimizer.learning_rate=0.00003",
            },
            1e-6,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["2 kills", "50 kills", "10 kills, other layouts"],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path, settings, bound):
    result = soak.soak(tmp_path, **settings)
    print(f"\n{json.dumps(result)}")
    assert result["largest_difference"] <= bound
    for name in ("steps_lost", "lines_lost", "lines_doubled"):
        assert result[name] == 0, name


def largest(checkpoint):
    return max(files(checkpoint), key=lambda path: path.stat().length)


def named(*names):
    def find(checkpoint):
        return next(path for path in files(checkpoint) if path.name in names)

    return find


def files(checkpoint):
    return list(digests.files(checkpoint))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def zeros(path):
    path.write_bytes(bytes(len(path.read_bytes())))


def remove(path):
    path.unlink()


def make_directory(path):
    path.unlink()
    path.mkdir()


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


PARTS = {
    "data": largest,
    "the manifest": named("manifest.ocdbt"),
    "the metadata": named("_METADATA", "_CHECKPOINT_METADATA"),
    "the digests": named("sha256.json"),
}
DAMAGE = {
    **{
        f"{part}: {how.__name__}": lambda run, how=how, find=find: how(
            find(run / "checkpoints" / "40")
        )
        for part, find in PARTS.items()
        for how in (truncate, empty, flip, zeros, remove, make_directory, lengthen)
    },
    "the directory is empty": lambda run: [
        path.rmtree() if path.is_dir() else path.unlink()
        for path in (run / "checkpoints" / "40").iterdir()
    ],
    "a file stands in its place": lambda run: (
        (run / "checkpoints" / "40").rmtree(),
        (run / "checkpoints" / "40").write_bytes(b"x"),
    ),
    "the state is of the checkpoint before": lambda run: (
        (run / "checkpoints" / "40").rmtree(),
        shutil.copytree(run / "checkpoints" / "36", run / "checkpoints" / "40"),
    ),
    "it has another number": lambda run: (run / "checkpoints" / "40").rename(
        run / "checkpoints" / "41"
    ),
    "two files are exchanged": lambda run: exchange(
        *sorted(files(run / "checkpoints" / "40"))[:2]
    ),
}


def exchange(a, b):
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


@pytest.mark.parametrize("all_damaged", [False, True])
def test_no_damage_is_used_in_silence(one_process, tmp_path, caplog, all_damaged):
    exp = experiment.build(run_config.read_config(epath.Path(one_process)))
    expected = exp.create_state(abstract=True)
    outcomes = {}
    for number, (name, damage) in enumerate(DAMAGE.items()):
        run = epath.Path(tmp_path / str(number))
        shutil.copytree(one_process, run)
        damage(run)
        if all_damaged:
            for path in (run / "checkpoints").iterdir():
                if path.name not in ("40", "41"):
                    empty(path / "sha256.json")
        caplog.clear()
        try:
            restored = checkpointing.restore(run, expected)
        except UserError as error:
            outcomes[name] = str(error).partition(" in ")[0]
        else:
            assert restored.step == int(restored.state.step) == 36, name
            assert "is damaged" in caplog.text, name
            outcomes[name] = "went back"
    print(f"\n{len(outcomes)} kinds of damage: {set(outcomes.values())}")
    refused = "No checkpoint"
    assert len(outcomes) >= 20
    assert set(outcomes.values()) == {refused if all_damaged else "went back"}


@pytest.mark.parametrize("number", [0, 1])
def test_processes_that_do_not_meet_say_so(tmp_path, number):
    processes = start_processes(
        2, 1, *SMALL, "--join_timeout=3", workdir=tmp_path / "run"
    )
    processes[1 - number].kill()
    _, errors = processes[number].communicate(timeout=200)
    processes[1 - number].communicate()
    assert processes[number].returncode == 1
    assert errors.splitlines()[-1].startswith("error: Not all processes met at local")
    assert not (tmp_path / "run").exists()


def test_axes_that_do_not_fit_stop_every_process(tmp_path):
    outputs = finish(
        start_processes(
            2, 2, *SMALL, "--config.sharding.data=8", workdir=tmp_path / "run"
        ),
        code=2,
    )
    for _, errors in outputs:
        assert "data 8 x fsdp 1 do not fit what was found: 4 devices" in errors
        assert "Traceback" not in errors
    assert "processes: 2, devices: 4, slices: 1" in outputs[0][0]


def test_a_run_in_use_stops_every_process(tmp_path):
    """Process 0 finds it, and the others repeat what it says."""
    (tmp_path / "note.txt").write_text("not a run")
    outputs = finish(start_processes(2, 1, *SMALL, workdir=tmp_path), code=2)
    for _, errors in outputs:
        assert "is not empty and holds no run" in errors.splitlines()[-1]


@pytest.mark.slow
def test_saving_during_the_steps_costs_little(tmp_path):
    """A checkpoint in each 100 steps.

    What one costs is measured over the steps during which it is written, in turn with
    as many without: over all 100 it would drown in the machine's own ups and downs.
    """
    config = synthetic.get_config()
    config.data.image_size = 32
    config.data.batch_size = 8
    config.data.num_examples = 320
    config.model.stem = "pooled"
    config.train.num_steps = 10**6
    exp = experiment.build(config)
    step, state = exp.compile_train_step(), exp.create_state()
    inputs, _ = next(exp.inputs.data(exp.open_data(), 0, exp.calls(0)[:1]))
    keep, window, pairs = checkpointing.keep(1), 20, 16
    costs, plain = [], []
    with checkpointing.Checkpoints(epath.Path(tmp_path), keep, {}) as checkpoints:
        # One for the compiler and the first touch of all memory.
        checkpoints.save_last(0, state)
        for number in range(1, 1 + pairs):
            seconds = {}
            # Each goes first in every other pair.
            for saves in (False, True)[:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                if saves:
                    checkpoints.save(number, state)
                for _ in range(window):
                    state, result = step(state, inputs)
                    result.loss.block_until_ready()
                if saves:
                    assert checkpoints.wait()
                seconds[saves] = time.perf_counter() - start
            costs.append(seconds[True] - seconds[False])
            plain.append(seconds[False] / window)
    step_seconds, cost = statistics.median(plain), statistics.median(costs)
    low, _, high = statistics.quantiles(costs)
    size = sum(x.nbytes for x in jax.tree.leaves(state.params))
    print(
        f"\na checkpoint costs {cost:.2f} s (quartiles {low:.2f} to {high:.2f}), "
        f"{cost / (100 * step_seconds):.2%} of 100 steps of {step_seconds:.3f} s; "
        f"parameters of {size / 1e6:.1f} MB"
    )
    assert cost <= 0.03 * 100 * step_seconds


def test_a_workdir_that_not_all_see_is_one_clear_line(tmp_path):
    """Each machine has a directory of that name, and one of them no run in it."""
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()

    def words(coordinates):
        place = places[coordinates[-1]]
        program = (
            f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); "
            f"os.chdir({str(place)!r}); from dresnet_jax import train; "
            "sys.exit(train.command.run(['train', *sys.argv[1:]]))"
        )
        config = f"--config={ROOT / 'configs' / 'digits.py'}"
        return (
            *("-c", program, config, *SMALL[1:], "--workdir=run"),
            *process_flags(coordinates),
        )

    for _, errors in finish(start_processes_of(2, words, devices=1), code=2):
        assert "workdir run is not the same for all: process 1" in errors
