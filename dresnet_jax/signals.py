"""Handles signals for a while."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

# Until a Ctrl-C that would be lost is tried again, seconds.
_AGAIN = 0.01


@contextlib.contextmanager
def handled(
    numbers: Sequence[int], handle: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Has a function handle some signals, and afterwards what handled them before.

    Nothing changes outside the main thread, to which Python leaves signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def put_off(number: int) -> Iterator[None]:
    """Has a signal wait until the block ends.

    Threads that are older than the block may still take it, and younger ones never do.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Sees to it that Ctrl-C, where it raises KeyboardInterrupt, is never lost."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with handled([signal.SIGINT] if is_default else [], interrupt):
        yield


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; a moment later where it would be lost.

    JAX (0.10) has a callback of the garbage collector, out of which Python lets no
    exception.
    """
    if frame is None or frame.f_code.co_name != "_xla_gc_callback":
        signal.default_int_handler(number, frame)
    threading.Timer(_AGAIN, os.kill, (os.getpid(), number)).start()
