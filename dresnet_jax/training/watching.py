"""What looks at a run's steps from outside: a watchdog, profiles, utilisation."""

import dataclasses
import faulthandler
import os
import signal
import sys
import threading
import time
from typing import Any

import jax
from etils import epath

from dresnet_jax.data.calls import Call

# Of a process whose watchdog ended it, as of the command `timeout`.
HUNG_EXIT_CODE = 124


@dataclasses.dataclass
class Watch:
    """Looks at each call of the compiled step; use as a context manager.

    Attributes:
      directory: of the run; profiles are written to `profiles` in it.
      watchdog: seconds without a finished step after which the process ends; 0 for
        never. The first step waits for the compiler too. Time during which the process
        was suspended does not count.
      profile: the steps, from 1, that are traced; those of a call are all or none.
      peak_flops: of a device, FLOPs per second; None where it is not known.
    """

    directory: epath.Path
    watchdog: float = 0.0
    profile: range = range(0)
    peak_flops: float | None = None

    def __enter__(self) -> "Watch":
        """Starts the watchdog; SIGUSR1 asks for a profile of the memory."""
        self._last = time.monotonic()
        self._tracing = False
        self._ended, self._memory_asked = threading.Event(), threading.Event()
        if self.watchdog:
            threading.Thread(target=self._guard, daemon=True).start()
        self._before = signal.signal(
            signal.SIGUSR1, lambda *_: self._memory_asked.set()
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the watchdog, and a trace under way."""
        self._ended.set()
        signal.signal(signal.SIGUSR1, self._before)
        if self._tracing:
            jax.profiler.stop_trace()

    def before(self, call: Call) -> None:
        """Starts a trace where the call's first step is the first to be traced."""
        steps = range(call.start + 1, call.start + call.steps + 1)
        if not self._tracing and any(step in self.profile for step in steps):
            jax.profiler.start_trace(os.fspath(self.directory / "profiles"))
            self._tracing = True

    def after(self, call: Call) -> None:
        """Notes that the call's steps have ended, on the devices too."""
        self._last = time.monotonic()
        done = call.start + call.steps
        if self._tracing and done >= self.profile.stop - 1:
            jax.profiler.stop_trace()
            self._tracing = False
        if self._memory_asked.is_set():
            self._memory_asked.clear()
            profiles = self.directory / "profiles"
            profiles.mkdir(parents=True, exist_ok=True)
            path = profiles / f"memory_{done}_{jax.process_index()}.prof"
            jax.profiler.save_device_memory_profile(os.fspath(path))

    def utilisation(self, step_flops: float | None, seconds: float) -> dict[str, Any]:
        """Returns the share of the device's peak that steps of this time make (MFU)."""
        if step_flops is None or self.peak_flops is None:
            return {}
        return {"mfu": step_flops / self.peak_flops / seconds}

    def _guard(self) -> None:
        pause, woken = min(1.0, self.watchdog / 10), time.monotonic()
        suspended = 0.0
        known = self._last
        while not self._ended.wait(pause):
            now = time.monotonic()
            if known != self._last:
                known, suspended = self._last, 0.0
            # This thread was not woken when it should: the process stood still.
            if now - woken > 5 * pause:
                suspended += now - woken - pause
            woken = now
            silent = now - known - suspended
            if silent > self.watchdog:
                print(
                    f"error: No step ended for {silent:.0f} s, more than --watchdog="
                    f"{self.watchdog:g}. The threads stand here:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                # Nothing gentler ends a process whose main thread hangs.
                os._exit(HUNG_EXIT_CODE)
