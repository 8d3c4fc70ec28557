"""A step that hangs ends the process; steps are traced and memory profiled."""

import os
import signal
import time

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from dresnet_jax.data.calls import Call
from dresnet_jax.training import watching
from tests.conftest import run_python, start_python

HANGS = """
import time
from etils import epath
from dresnet_jax.training.watching import Watch
with Watch(epath.Path("."), watchdog=0.3):
    time.sleep(60)
"""


def test_the_watchdog_shows_where_a_process_hangs_and_ends_it():
    code, _, errors = run_python("-c", HANGS)
    assert code == watching.HUNG_EXIT_CODE == 124
    assert "No step ended for 0 s, more than --watchdog=0.3" in errors
    assert 'File "<string>", line 6 in <module>' in errors


def test_asked_steps_are_traced_and_memory_is_profiled(tmp_path):
    with watching.Watch(epath.Path(tmp_path), profile=range(2, 4)) as watch:
        for start in range(4):
            call = Call(start, 1)
            watch.before(call)
            jax.block_until_ready(jnp.ones(3) + 1)
            os.kill(os.getpid(), signal.SIGUSR1)
            watch.after(call)
    names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert any(name.endswith(".xplane.pb") for name in names)
    assert sorted(n for n in names if n.startswith("memory_")) == [
        f"memory_{step}_0.prof" for step in (1, 2, 3, 4)
    ]


def test_utilisation_is_the_share_of_the_peak():
    watch = watching.Watch(epath.Path("."), peak_flops=500.0)
    assert watch.utilisation(1000.0, 4.0)["mfu"] == pytest.approx(0.5)
    assert not watch.utilisation(None, 4.0)
    assert not watching.Watch(epath.Path(".")).utilisation(1000.0, 4.0)


SUSPENDED = """
import os, time
from etils import epath
from dresnet_jax.data.calls import Call
from dresnet_jax.training.watching import Watch
with Watch(epath.Path("."), watchdog=0.6) as watch:
    print("begun", flush=True)
    for i in range(20):
        time.sleep(0.2)
        watch.after(Call(i, 1))
        print("step", flush=True)
"""


def test_a_process_that_was_suspended_is_not_called_hung():
    process = start_python("-c", SUSPENDED)
    assert process.stdout.readline() == "begun\n"
    for _ in range(2):
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "step\n"
    process.kill()
    process.communicate()
