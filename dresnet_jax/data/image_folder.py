"""Finds your own images in a directory, sorted by split and class."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from dresnet_jax.data import images
from dresnet_jax.errors import UserError

# What a directory may be called that is a split, in any case.
_SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
# Directories that systems and programs leave, besides those that begin with a
# point.
_OF_SYSTEMS = {
    *("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir"),
    *("lost+found", "__pycache__"),
}


@dataclasses.dataclass
class Found:
    """The images of a directory.

    Attributes:
      class_names: in the order of the labels.
      files: of each split, pairs of a path, relative to the directory, and a label.
      left_out: how many files were, by the reason.
    """

    class_names: list[str]
    files: dict[str, list[tuple[str, int]]]
    left_out: collections.Counter[str]

    def lines(self) -> list[str]:
        """Describes what was taken of each split and class, and what was left out."""
        lines = []
        for split, files in self.files.items():
            counts = collections.Counter(label for _, label in files)
            each = ", ".join(
                f"{name} {counts[i]}" for i, name in enumerate(self.class_names)
            )
            lines.append(f"{split}: {len(files)} images: {each}")
        lines += [f"left out: {n} {why}" for why, n in sorted((+self.left_out).items())]
        return lines


def find(root: Path) -> Found:
    """Finds the images of a directory that has one for each class.

    Images lie at any depth below the directory of their class; the directories of
    classes lie in `root`, or in those of the splits there. Links are followed where
    they lead to what is in `root` and was not result without them.

    Raises:
      UserError: there are no classes, they differ between splits, one has no training
        image, a name is no text, or next to the splits are other directories.
    """
    if not root.is_dir():
        raise UserError(f"--from_dir={root} is not a directory.")
    root = root.resolve()
    walk = _Walk(root)
    splits = _splits(root, walk.left_out)
    of_classes = {
        split: dict(_classes(directory, walk)) for split, directory in splits.items()
    }
    names = sorted(of_classes["train"])
    if len(names) < 2:
        raise UserError(
            f"{root} holds no directories of images, one for each class: "
            f"{len(names)} found."
        )
    for name in names:
        if not name.isprintable():
            raise UserError(
                f"The directory {name!r} cannot be a class: its name holds what is no "
                "printable character."
            )
    for split, classes in of_classes.items():
        if different := sorted(classes.keys() ^ set(names)):
            where = "train" if different[0] in classes else split
            raise UserError(
                f"Classes differ: {splits[where]} has no directory {different[0]!r}; "
                f"{len(different)} are not in both {splits['train'].name} and "
                f"{splits[split].name}."
            )
    places = {
        (split, label): classes[name]
        for split, classes in of_classes.items()
        for label, name in enumerate(names)
    }
    links: dict[tuple[str, int], list[Path]] = {place: [] for place in places}
    result = {place: walk.below(places[place], links[place]) for place in places}
    # Links last: what can be found without them is.
    for place in places:
        result[place] += walk.through(links[place])
    files: dict[str, list[tuple[str, int]]] = {split: [] for split in of_classes}
    for (split, label), paths in result.items():
        files[split] += [(path, label) for path in paths]
    if empty := [i for i in range(len(names)) if not result["train", i]]:
        more = "; ".join(f"{n} {why}" for why, n in sorted((+walk.left_out).items()))
        raise UserError(
            f"{places['train', empty[0]]} holds no training image"
            + (f", nor {len(empty) - 1} other classes" if len(empty) > 1 else "")
            + f": an image ends in {', '.join(images.SUFFIXES)}."
            + (f" Left out: {more}." if more else "")
        )
    # In an order that is nobody's, and the same on every machine: what is carved out
    # for validation is of all classes.
    for pairs in files.values():
        pairs.sort(key=lambda pair: hashlib.sha256(os.fsencode(pair[0])).digest())
    return Found(names, {k: v for k, v in files.items() if v}, walk.left_out)


def _splits(root: Path, left_out: collections.Counter[str]) -> dict[str, Path]:
    """The directory of each split; all of it for training where none is named so."""
    inside = [path for path in sorted(root.iterdir()) if path.is_dir()]
    result: dict[str, Path] = {}
    others = []
    for path in inside:
        split = _SPLITS.get(path.name.lower())
        if split in result:
            raise UserError(
                f"{root} has both {result[split].name} and {path.name}: keep one."
            )
        if split:
            result[split] = path
        elif not _is_hidden(path):
            others.append(path.name)
    if not result:
        return {"train": root}
    if "train" not in result or others:
        have = ", ".join(repr(path.name) for path in result.values())
        lacks = "has no train" if "train" not in result else f"has also {others[0]!r}"
        raise UserError(
            f"{root} has the splits {have} and {lacks}: next to train there may be "
            "validation (or val, valid) and test, and nothing else."
        )
    left_out["files next to the splits"] += sum(p.is_file() for p in root.iterdir())
    left_out["hidden or system directories"] += len(inside) - len(result)
    return dict(sorted(result.items(), key=lambda x: list(_SPLITS).index(x[0])))


def _classes(split: Path, walk: "_Walk") -> Iterator[tuple[str, Path]]:
    for path in sorted(split.iterdir()):
        if not path.is_dir():
            walk.left_out["files in no class"] += 1
        elif _is_hidden(path):
            walk.left_out["hidden or system directories"] += 1
        else:
            yield path.name, path


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name in _OF_SYSTEMS


class _Walk:
    """Finds the images below directories of one root, each once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: set[Path] = set()
        self.left_out: collections.Counter[str] = collections.Counter()

    def below(self, top: Path, links: list[Path], *, follow: bool = False) -> list[str]:
        """Returns the images below a path, relative to the root.

        Args:
          top: the path; a link is followed if `follow` says so.
          links: gets every other link, none of which is followed.
          follow: as `top` has it.
        """
        result, waiting = [], [top]
        while waiting:
            path = waiting.pop()
            if path.is_symlink() and not (follow and path == top):
                links.append(path)
                continue
            real = path.resolve()
            if _is_hidden(path):
                kind = "directories" if real.is_dir() else "files"
                self.left_out[f"hidden or system {kind}"] += 1
            elif real in self._seen:
                self.left_out["links to what was found without them"] += 1
            elif real.is_dir():
                self._seen.add(real)
                waiting += sorted(path.iterdir(), reverse=True)
            elif not real.is_file():
                self.left_out["broken links, pipes or devices"] += 1
            elif path.suffix.lower() not in images.SUFFIXES:
                self.left_out[f"files that end in {path.suffix or 'nothing'!r}"] += 1
            else:
                self._seen.add(real)
                result.append(os.fspath(path.relative_to(self._root)))
        return result

    def through(self, links: list[Path]) -> list[str]:
        """Returns the images that links lead to, and those links that are met there."""
        result: list[str] = []
        while links:
            link = links.pop(0)
            if link.resolve().is_relative_to(self._root):
                result += self.below(link, links, follow=True)
            else:
                self.left_out["links out of the directory"] += 1
        return result
