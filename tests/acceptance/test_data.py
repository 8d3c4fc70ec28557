"""No input pipeline, restart, device or process changes a batch, or is waited for."""

import importlib.util
import itertools
import json
import socket
import statistics

import pytest
from etils import epath

from dresnet_jax.training import metrics
from tests.conftest import run_command, run_python, start_python

STEPS = 200
PIPELINES = ("resident", "sharded", "streaming")
MODULE = "tests.acceptance.batch_digests"


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def digests(data_dir, devices, processes, start):
    """The digest of each step's batch: {pipeline: {step: digest}}."""
    port = free_port()
    running = [
        start_python(
            "-m",
            MODULE,
            f"--data_dir={data_dir}",
            f"--start={start}",
            f"--processes={processes}",
            f"--process={process}",
            f"--port={port}",
            devices=devices,
        )
        for process in range(processes)
    ]
    results = [process.communicate(timeout=500) for process in running]
    for process, (_, errors) in zip(running, results, strict=True):
        assert process.returncode == 0, errors
    result = {name: {} for name in PIPELINES}
    for line in results[0][0].splitlines():
        if line.startswith(PIPELINES):
            name, step, digest = line.split()
            result[name][int(step)] = digest
    return result


@pytest.fixture(scope="module")
def unbroken(fashion_mnist):
    """The batches of one process with one device, by the resident pipeline."""
    result = digests(fashion_mnist, devices=1, processes=1, start=0)
    assert result["streaming"] == result["sharded"] == result["resident"]
    assert len(set(result["resident"].values())) == STEPS
    return result["resident"]


FAST = ((1, 8, 0), (2, 8, 37))


@pytest.mark.parametrize(
    ("processes", "devices", "start"),
    [
        pytest.param(*cell, marks=() if cell in FAST else pytest.mark.slow)
        for cell in itertools.product((1, 2, 4), (1, 8), (0, 37))
    ],
)
def test_batches_are_the_same_bits_by_every_pipeline(
    fashion_mnist, unbroken, processes, devices, start
):
    expected = {step: digest for step, digest in unbroken.items() if step >= start}
    result = digests(fashion_mnist, devices, processes, start)
    assert result == dict.fromkeys(PIPELINES, expected)
    print(
        f"\n{len(expected)} batches of {processes} processes with {devices} devices "
        f"each, from step {start} on, are those of one, by {', '.join(PIPELINES)}"
    )


@pytest.mark.parametrize(
    ("mode", "limit"),
    [pytest.param("resident", 0.01, marks=pytest.mark.slow), ("streaming", 0.05)],
)
def test_data_are_not_waited_for(fashion_mnist, tmp_path, mode, limit):
    """The median of six parts of a run, since other work may stop one of them.

    The first part starts the threads that read.
    """
    code, _, errors = run_command(
        "train",
        "--config=configs/fashion_mnist.py",
        f"--config.data.data_dir={fashion_mnist}",
        f"--config.data.mode={mode}",
        "--config.train.num_steps=18",
        "--config.train.log_every_steps=3",
        f"--workdir={tmp_path / 'run'}",
    )
    assert code == 0, errors
    lines = metrics.read(epath.Path(tmp_path / "run"))
    waits = [line["data_wait"] for line in lines if "data_wait" in line]
    print(f"\n{mode}: waited {', '.join(f'{wait:.3%}' for wait in waits)} of the time")
    assert len(waits) == 6
    assert statistics.median(waits) < limit


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_training_loads_no_tensorflow(fashion_mnist, tmp_path, mode):
    code, output, errors = run_python(
        "-c",
        "import atexit, runpy, sys; atexit.register(lambda: print([name for name in "
        "sys.modules if name.split('.')[0] in ('tensorflow', 'tf_keras')])); "
        "runpy.run_module('dresnet_jax.train', run_name='__main__', alter_sys=True)",
        "--config=configs/fashion_mnist.py",
        f"--config.data.data_dir={fashion_mnist}",
        f"--config.data.mode={mode}",
        "--config.model.width=2",
        "--config.train.num_steps=2",
        f"--workdir={tmp_path / 'run'}",
    )
    assert code == 0, errors
    assert output.splitlines()[-1] == "[]"
    print(f"\nTensorFlow modules loaded by a {mode} training: none")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="requirements-prepare.txt is not installed",
)
def test_streaming_photographs_is_as_fast_as_tf_data():
    code, output, errors = run_python("-m", "tests.acceptance.tfdata_comparison")
    assert code == 0, errors
    *lines, result = output.splitlines()[-5:]
    print("\n" + "\n".join(lines))
    assert json.loads(result)["tf.data"] >= 0.9
