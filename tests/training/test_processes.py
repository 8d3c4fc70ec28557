"""Processes meet by their flags; one that is alone needs nothing."""

import os
import signal

import pytest

from dresnet_jax import signals
from dresnet_jax.errors import UserError
from dresnet_jax.training import processes

OPEN_MPI_5 = {
    "PMIX_NAMESPACE": "prterun-node-7-1200@1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}


def test_open_mpi_5_says_which_process_this_is():
    port = 61440 + 1201
    assert processes._open_mpi_5(OPEN_MPI_5) == (f"localhost:{port}", 4, 3)
    two_hosts = OPEN_MPI_5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert processes._open_mpi_5(two_hosts) == (f"node-7:{port}", 4, 3)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"PMIX_NAMESPACE": "slurm.pmix.1.0", "OMPI_COMM_WORLD_SIZE": "2"},
        {"PMIX_NAMESPACE": "prterun-node-7-1200@1"},
        OPEN_MPI_5 | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:2"},
    ],
)
def test_others_are_left_to_jax(environment):
    assert processes._open_mpi_5(environment) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", None, None), "--num_processes and --process_id must be given"),
        ((None, 2, 1), "--coordinator must be given with the others"),
        (("a:1", 2, 2), "--process_id=2 must be from 0"),
        (("a:1", 2, -1), "--process_id=-1 must be from 0"),
        (("a:1", 0, 0), "--num_processes=0 above 0"),
    ],
)
def test_wrong_flags_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        processes.join(*given, timeout=1, environment={})


def test_alone_a_process_decides_for_itself(capsys):
    assert processes.first_alone(lambda: 3) == 3
    assert processes.agreed(4) == 4
    processes.say("once")
    assert capsys.readouterr().out == "once\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_once(number):
    before = signal.getsignal(number)
    with processes.stop_signals() as stop:
        assert not stop.now()
        os.kill(os.getpid(), number)
        assert stop.now()
        assert stop.by_ctrl_c == (number == signal.SIGINT)
        # A second Ctrl-C interrupts; a second SIGTERM cuts no save.
        acts = signal.getsignal(number) is signals.interrupt
        assert acts == (number == signal.SIGINT)
        if not acts:
            os.kill(os.getpid(), number)
            assert stop.now()
    assert signal.getsignal(number) == before
