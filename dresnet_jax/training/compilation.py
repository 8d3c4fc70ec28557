"""Says what is being compiled, how long it took, and whether it came from the cache."""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, ParamSpec, TypeVar

import jax
from tqdm import tqdm

P = ParamSpec("P")
R = TypeVar("R")

# An event that JAX records for each program that it reads from its cache.
_HIT = "/jax/compilation_cache/cache_hits"
# The field of its config by which the cache keeps no program that compiles faster.
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"


# Options for a program of many random arrays that runs once, on a CPU: to optimise it
# takes much longer than to run it.
QUICK_ON_CPU: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
if metadata.version("jaxlib") < "0.11":
    # The older way to emit fusions, which newer releases lack, is twice as fast.
    QUICK_ON_CPU["xla_cpu_use_fusion_emitters"] = False
    QUICK_ON_CPU["xla_cpu_parallel_codegen_split_count"] = 1


class _Totals(threading.local):
    """What this thread has compiled: programs from the cache, and all seconds."""

    hits = 0
    seconds = 0.0
    depth = 0


_totals = _Totals()


def _count(event: str, **_: object) -> None:
    if event == _HIT:
        _totals.hits += 1


jax.monitoring.register_event_listener(_count)


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """Announces the compilation of one program, as "the training step", inside.

    The cache, where there is one, keeps the program, however fast it compiles.
    """
    _say(f"compiling {what} ...")
    start, hits = time.monotonic(), _totals.hits
    _totals.depth += 1
    least = getattr(jax.config, _LEAST_SECONDS)
    jax.config.update(_LEAST_SECONDS, 0)
    try:
        yield
    finally:
        jax.config.update(_LEAST_SECONDS, least)
        seconds = time.monotonic() - start
        _totals.depth -= 1
        if not _totals.depth:
            _totals.seconds += seconds
    how = "read from the compilation cache" if _totals.hits > hits else "compiled"
    _say(f"{how}: {what}, in {seconds:.1f} s")


def announce(what: str, function: Callable[P, R]) -> Callable[P, R]:
    """Returns a jitted function that announces the compilation in its first call."""
    is_compiled = False

    @functools.wraps(function)
    def announcing(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal is_compiled
        if is_compiled:
            return function(*args, **kwargs)
        # JAX returns before the program has run, but not before it is compiled.
        with announced(what):
            result = function(*args, **kwargs)
        is_compiled = True
        return result

    return announcing


def clock() -> float:
    """Returns seconds of a clock that stands still while this thread compiles."""
    return time.monotonic() - _totals.seconds


def _say(line: str) -> None:
    """Prints a line to standard error, once for all processes, above progress bars."""
    if jax.process_index() == 0:
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()
