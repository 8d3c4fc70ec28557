"""The image files that a person names, read one after the other."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath

from dresnet_jax.data import images
from dresnet_jax.data.views import View
from dresnet_jax.errors import UserError


class ImageFiles:
    """Image files, of which those that cannot be read are reported and left out.

    Attributes:
      paths: of the files, in their order.
      unreadable: what could not be answered, and why, of JSON's types.
    """

    def __init__(self, names: Sequence[str], report: Callable[[str], None]) -> None:
        """Finds the files.

        Args:
          names: files, directories, whose images are found at any depth, and - for a
            list of files on standard input.
          report: takes a line for each file that is left out.

        Raises:
          UserError: there is no file.
        """
        self.paths: list[str] = []
        self.unreadable: list[dict[str, str]] = []
        self._report = report
        for name in names:
            directory = epath.Path(name).expanduser()
            if name == "-":
                lines = sys.stdin.buffer.read().split(b"\n")
                self.paths += [
                    os.fsdecode(line.rstrip(b"\r")) for line in lines if line
                ]
            elif directory.is_dir():
                self._add_directory(name, directory)
            else:
                self.paths.append(name)
        if not self.paths and not self.unreadable:
            raise UserError("No image is named on standard input.")

    def _add_directory(self, name: str, directory: epath.Path) -> None:
        known = len(self.unreadable)
        files = list(self._files_in(directory))
        result = [
            os.fspath(path)
            for path in files
            if path.suffix.lower() in images.SUFFIXES and path.is_file()
        ]
        if not result and len(self.unreadable) == known:
            kinds = ", ".join(images.SUFFIXES)
            raise UserError(f"Directory {directory} holds no image: {kinds}.")
        if others := len(files) - len(result):
            self._report(
                f"{images.printable(name)}: files that are no images by their names, "
                f"passed over: {others}"
            )
        self.paths += sorted(result)

    def _files_in(self, directory: epath.Path) -> Iterator[epath.Path]:
        """Yields the files at any depth.

        Directories that links lead to are entered too, each but once.
        """
        directories, entered = [directory], set()
        while directories:
            inside = directories.pop()
            real = os.fspath(inside)
            if "://" not in real:  # A bucket has no links.
                real = os.path.realpath(real)
            if real in entered:
                continue
            entered.add(real)
            try:
                paths = sorted(inside.iterdir())
            except OSError as error:
                self._leave_unreadable(os.fspath(inside), error)
                continue
            for path in paths:
                if path.is_dir():
                    directories.append(path)
                else:
                    yield path

    def read(self, view: View) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the path and the pixels of each file that can be read."""
        for name in self.paths:
            path = epath.Path(name).expanduser()
            try:
                if path.exists() and not path.is_file():
                    raise OSError("it is no regular file")
                yield name, view.fit(path.read_bytes())
            # A name with a NUL byte is a ValueError.
            except (OSError, ValueError) as error:
                self._leave_unreadable(name, error)

    def _leave_unreadable(self, path: str, error: Exception) -> None:
        why = getattr(error, "strerror", None) or str(error)
        self.leave_out(path, f"cannot be read: {why}")

    def leave_out(self, path: str, why: str) -> None:
        """Reports a file that is not answered, and why."""
        name = images.printable(path)
        self._report(f"{name} {why}")
        self.unreadable.append({"image": name, "error": why})
