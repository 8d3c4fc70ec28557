"""Handles signals for a while."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType


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
