"""A small run that takes seconds, and what it left."""

import json
import socket
import time

import jax
import numpy as np
from etils import epath

from dresnet_jax.training import checkpointing, experiment, metrics, run_config
from tests.conftest import start_python

# Low, since a high rate multiplies the rounding of a sum taken in another order: once
# one ReLU's input falls on the other side of zero, the curves part.
GENTLE = "--config.optimizer.learning_rate=0.0003"


def last_json(output):
    return json.loads(output.splitlines()[-1])


def progress_and_rest(errors):
    """The lines on compilations, and the others."""
    lines = errors.splitlines()
    progress = ("compiling ", "compiled: ", "read from the compilation cache: ")
    result = [line for line in lines if line.startswith(progress)]
    return result, [line for line in lines if line not in result]


def final_state(directory, steps=40, *, only_params=False):
    """The leaves of the newest checkpoint, read on one device, as NumPy arrays."""
    directory = epath.Path(directory)
    exp = experiment.build(run_config.read_config(directory))
    restored = checkpointing.restore(directory, exp.create_state(abstract=True))
    assert restored.step == steps
    state = restored.state.replace(key=jax.random.key_data(restored.state.key))
    leaves = jax.tree.leaves(state.params if only_params else state)
    return [np.asarray(leaf) for leaf in leaves]


def start_processes(count, devices, *arguments, workdir):
    """Starts a training of several processes on this machine."""

    def words(coordinates):
        return (
            *("-m", "dresnet_jax.train", *arguments, f"--workdir={workdir}"),
            *process_flags(coordinates),
        )

    return start_processes_of(count, words, devices=devices)


def process_flags(coordinates):
    """The flags that tell a process of train who it is."""
    names = "coordinator", "num_processes", "process_id"
    return [f"--{name}={x}" for name, x in zip(names, coordinates, strict=True)]


def start_processes_of(count, words, *, devices):
    """Starts Python several times, with words made from the processes' coordinates.

    Those are what `processes.join` takes: coordinator, processes, this process.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start_python(*words((f"localhost:{port}", count, number)), devices=devices)
        for number in range(count)
    ]


def finish(processes, code=0):
    """Waits for processes to end with a code; returns [(output, errors)]."""
    outputs = [process.communicate(timeout=900) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == code, errors
    return outputs


def last_step(directory):
    """The step that was logged last; -1 before the first."""
    lines = metrics.read(epath.Path(directory))
    return lines[-1]["step"] if lines else -1


def timeless_lines(directory):
    """The lines of metrics.jsonl, without the figures that are times."""
    times = ("images_per_second", "step_seconds", "data_wait", "checkpoint_wait")
    return [
        {name: value for name, value in line.items() if name not in times}
        for line in metrics.read(epath.Path(directory))
    ]


def signal_at(process, directory, step, number):
    """Sends a signal to a training that has logged a step; returns its last words."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if last_step(directory) >= step:
            process.send_signal(number)
            return process.communicate(timeout=100)[1]
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise TimeoutError(f"Step {step} was never logged.")
