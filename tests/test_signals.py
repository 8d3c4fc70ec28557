"""Signals are handled for a while, and a Ctrl-C is never lost."""

import os
import signal
import threading
import time

import pytest

from dresnet_jax import signals


@pytest.fixture(autouse=True)
def default_handler():
    """Python's, which a shell's background job has not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # Python handles it between two of these.
        pass


def test_ctrl_c_in_a_callback_of_the_collector_comes_after_it():
    lost = []

    def _xla_gc_callback():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
        except KeyboardInterrupt:
            lost.append(True)

    def collected():
        _xla_gc_callback()
        time.sleep(10)

    with signals.interruptible():
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            collected()
    assert not lost
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.interruptible():
        press_ctrl_c()


def test_nothing_changes_outside_the_main_thread():
    result = []

    def inside():
        with signals.handled([signal.SIGTERM], print):
            result.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert result == [signal.getsignal(signal.SIGTERM)]
