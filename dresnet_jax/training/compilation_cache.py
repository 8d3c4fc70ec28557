"""Keeps compiled programs on disk, safely where several processes share the directory.

JAX's own cache writes its entries in place and trusts what it reads: a process may read
half an entry of another one, an entry that a full disk cut off stays, and one that was
made on a CPU with other features may crash the process. JAX opens the directory through
`etils.epath`, which lets a package register a path class; `_Directory` is one whose
entries are written whole or not at all, carry a digest, and lie apart by CPU.
"""

import contextlib
import hashlib
import os
import platform
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import logging
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as jax_cache

OFF = "off"
_SCHEME = "dresnet-cache://"
# Bytes of the digest before an entry's content.
_DIGEST_SIZE = hashlib.sha256().digest_size
# Where Linux describes the CPU.
_CPU_INFO = Path("/proc/cpuinfo")
# Programs that compile in less time, seconds, and that `compilation.announced` does not
# name, are not worth a file.
_LEAST_SECONDS = 0.1


def use(name: str | None) -> None:
    """Keeps the programs that this process compiles from now on.

    A directory that cannot be written is a warning, not an error: what it holds is used
    where it can be read, and training continues.

    Args:
      name: a directory, also one such as gs://bucket/cache; "off" for none; None for
        `default_directory()`.
    """
    _enable(name != OFF)
    if name == OFF:
        return
    directory = epath.Path(name).expanduser() if name else default_directory()
    directory /= cpu_features()
    jax.config.update("jax_compilation_cache_dir", _SCHEME + os.fspath(directory))
    # XLA would write them itself, to a path that only JAX understands.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


@contextlib.contextmanager
def bypassed() -> Iterator[None]:
    """Compiles what is inside without the cache, for whoever times it."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    # JAX decides once whether it uses a cache, and again after a reset.
    _enable(False)
    try:
        yield
    finally:
        _enable(before)


def _enable(is_enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", is_enabled)
    jax_cache.reset_cache()


def default_directory() -> epath.Path:
    """Returns JAX's own choice where there is one, else one in the user's caches."""
    if chosen := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return epath.Path(chosen).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return epath.Path(caches).expanduser() / "dresnet_jax" / "xla"


def cpu_features() -> str:
    """Returns a name for the instructions of this CPU, for which XLA compiles."""
    text = ""
    if _CPU_INFO.exists():
        lines = _CPU_INFO.read_text()
        # The features, and the model by which LLVM tunes its code.
        result = re.findall(
            r"^(?:flags|Features|cpu family|model|CPU part)\s*:.*$", lines, re.MULTILINE
        )
        text = "\n".join(dict.fromkeys(result))
    digest = hashlib.sha256(f"{platform.processor()}\n{text}".encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


@epath.register_path_cls(_SCHEME)
class _Directory:
    """The directory of a cache, as JAX uses it: makes itself, and gives entries.

    Attributes:
      is_writable: whether no write has failed.
      has_named_damage: whether a damaged entry was warned of: one warning is enough.
    """

    def __init__(self, uri: str) -> None:
        self._path = epath.Path(uri.removeprefix(_SCHEME))
        self.is_writable = True
        self.has_named_damage = False

    def mkdir(self, parents: bool, exist_ok: bool) -> None:
        """Makes the directory, where that is possible."""
        with self.warned():
            self._path.mkdir(parents=parents, exist_ok=exist_ok)
            path = os.fspath(self._path)
            if "://" not in path and not os.access(path, os.W_OK):
                raise OSError("no permission, or a read-only file system")

    def joinpath(self, *parts: str) -> "_Directory | _Entry":
        """Returns itself, as `epath.Path` calls it, or an entry."""
        return self / "/".join(parts) if parts else self

    def __truediv__(self, name: str) -> "_Entry":
        return _Entry(self, self._path / name)

    @contextlib.contextmanager
    def warned(self) -> Iterator[None]:
        """Warns, once, of what fails inside, and then writes no further entry."""
        try:
            yield
        # Whatever a file system raises, which may be a bucket's: the run continues.
        except Exception as error:
            if self.is_writable:
                logging.warning(
                    "Compiled programs are not kept: %s cannot be written: %s.",
                    self._path,
                    getattr(error, "strerror", None) or error,
                )
            self.is_writable = False


class _Entry:
    """The file of one program: the digest of its content, and the content."""

    def __init__(self, directory: _Directory, path: epath.Path) -> None:
        self._directory = directory
        self._path = path
        self._content = b""

    def exists(self) -> bool:
        """Checks whether there is a whole entry; removes and names a damaged one."""
        with self._directory.warned():
            if not self._path.exists():
                return False
            data = self._path.read_bytes()
            digest, self._content = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
            if hashlib.sha256(self._content).digest() == digest:
                return True
            if not self._directory.has_named_damage:
                logging.warning("%s is damaged, and is compiled again.", self._path)
            self._directory.has_named_damage = True
            self._path.unlink(missing_ok=True)
        return False

    def read_bytes(self) -> bytes:
        """Returns what `exists` has read."""
        return self._content

    def write_bytes(self, content: bytes) -> None:
        """Writes the entry whole, or not at all."""
        if not self._directory.is_writable:
            return
        partial = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
        with self._directory.warned():
            partial.write_bytes(hashlib.sha256(content).digest() + content)
            partial.replace(self._path)
        if not self._directory.is_writable:
            try:
                partial.unlink(missing_ok=True)
            except Exception:
                logging.debug("%s stays.", partial)
