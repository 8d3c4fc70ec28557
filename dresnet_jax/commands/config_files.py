"""Finds mistakes in --config flags before absl reads them."""

import re
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

import ml_collections

from dresnet_jax import defaults
from dresnet_jax.errors import UserError, unknown
from dresnet_jax.training import run_config


def check(argv: list[str]) -> ml_collections.ConfigDict | None:
    """Finds mistakes in --config flags whose own messages would be a traceback.

    Returns:
      The config of the file, if one is given.

    Raises:
      UserError: the file is missing, or a field does not exist.
    """
    path = None
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            path = match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2])
    fields = [m[1] for m in (re.match(r"--?config\.([^=]+)", a) for a in argv) if m]
    if path is None:
        if fields:
            raise UserError(f"--config.{fields[0]} needs --config: {choices()}.")
        return None
    file = Path(path)
    if not file.is_file():
        files = choices(file.parent)
        raise UserError(f"Config file '{path}' does not exist: {files}.")
    # Config files import each other as configs.<name>, from wherever one stands.
    root = str(file.resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    tree = _load(file)
    for field in fields:
        _check_field(tree, field)
    return tree


def _load(file: Path) -> ml_collections.ConfigDict:
    try:
        tree = runpy.run_path(str(file))["get_config"]()
    # A config is code: any error in it is the person's to mend.
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f", line {lines[-1]}" if lines else ""
        renamed = [
            f" It is now {new}."
            for old, new in run_config.RENAMED.items()
            if f'"{old.rpartition(".")[2]}"' in str(error)
        ]
        raise UserError(
            f"Config file '{file}'{where}: {type(error).__name__}: "
            f"{' '.join(str(error).split())}{''.join(renamed)}"
        ) from error
    if not isinstance(tree, ml_collections.ConfigDict):
        raise UserError(f"Config file '{file}': get_config() returns no ConfigDict.")
    return tree


def _check_field(tree: ml_collections.ConfigDict, field: str) -> None:
    node: Any = tree
    parts = field.split(".")
    for depth, part in enumerate(parts):
        inside = ".".join(["config", *parts[:depth]])
        if not isinstance(node, ml_collections.ConfigDict):
            raise UserError(f"{inside} has no fields, so no '{part}'.")
        if part not in node:
            # Of a group that is misspelt the nearest group is meant.
            is_last = depth == len(parts) - 1
            meant = elsewhere(tree, part if is_last else field)
            raise unknown(f"field of {inside}", part, list(node), meant)
        node = node[part]
    if isinstance(node, ml_collections.ConfigDict):
        raise UserError(f"config.{field} is a group: set one of {', '.join(node)}.")


def elsewhere(tree: ml_collections.ConfigDict | None, field: str) -> list[str]:
    """Returns the paths of up to three fields of a config that end like this one."""
    paths = (path for path, _ in defaults.fields(tree or {}))
    return [path for path in paths if f".{path}".endswith(f".{field}")][:3]


def choices(near: Path = Path("configs")) -> str:
    """Returns what a person may give: what lies near, if those are configs."""
    configs = Path("configs")
    directory = near if near.is_dir() and configs in near.parents else configs
    others = ("__init__", "common")
    result = sorted(str(x) for x in directory.glob("*.py") if x.stem not in others)
    if not result:
        return "give the path of a config; there is no directory configs here"
    return f"give one of {', '.join(result)}"
