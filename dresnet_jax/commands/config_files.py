"""Finds the file that --config names, and mistakes in its flags before absl does."""

import ast
import re
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

import ml_collections

import dresnet_jax
from dresnet_jax import defaults
from dresnet_jax.errors import UserError, unknown
from dresnet_jax.training import run_config

# What lies among the configs and is none.
_NO_CONFIGS = ("__init__", "common")


def shipped_directory() -> Path:
    """Returns where this package's own configs lie: in it, or next to a checkout's."""
    package = Path(dresnet_jax.__file__).parent
    installed = package / "shipped" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_names() -> list[str]:
    """Returns the names of this package's own configs, such as digits, compare/deep."""
    directory = shipped_directory()
    files = [x.relative_to(directory) for x in directory.rglob("*.py")]
    return sorted(
        x.with_suffix("").as_posix() for x in files if x.stem not in _NO_CONFIGS
    )


def about(name: str) -> str:
    """Returns the first line of the docstring of one of this package's own configs."""
    text = (shipped_directory() / f"{name}.py").read_text()
    docstring = ast.get_docstring(ast.parse(text))
    return (docstring or "").partition("\n")[0]


def check(argv: list[str], folder: str = "") -> ml_collections.ConfigDict | None:
    """Finds mistakes in --config flags whose own messages would be a traceback.

    Args:
      argv: the command line; the name of a config of this package becomes its file's.
      folder: where the command's own configs are among this package's.

    Returns:
      The config of the file, if one is given.

    Raises:
      UserError: the file is missing, or a field does not exist.
    """
    path = None
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"(--?config)(?:=(.*))?", argument, re.DOTALL):
            if match[2] is None and i + 1 == len(argv):
                break
            path = str(_file(argv[i + 1] if match[2] is None else match[2], folder))
            argv[i : i + 1 + (match[2] is None)] = [f"{match[1]}={path}"]
    fields = [m[1] for m in (re.match(r"--?config\.([^=]+)", a) for a in argv) if m]
    if path is None:
        if fields:
            raise UserError(f"--config.{fields[0]} needs --config: {choices(folder)}.")
        return None
    # Config files import each other as configs.<name>, from wherever one stands.
    folders = Path(path).resolve().parents
    root = next(x for x in folders if not (x / "__init__.py").exists())
    if str(root) not in sys.path:
        sys.path.append(str(root))
    tree = _load(Path(path))
    for field in fields:
        _check_field(tree, field)
    return tree


def _file(name: str, folder: str) -> Path:
    """The file that a path names, or a name of this package's own configs.

    Raises:
      UserError: there is none.
    """
    file = Path(name).expanduser()
    if file.is_file():
        return file
    for own in (f"{folder}/{name}".strip("/"), name.strip("/")):
        if own in shipped_names():
            return shipped_directory() / f"{own}.py"
    raise UserError(f"There is no config '{name}': {choices(folder)}.")


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


def names(folder: str = "") -> list[str]:
    """Returns the names by which a command that has a folder finds its configs."""
    paths = map(Path, shipped_names())
    return [path.name for path in paths if path.parent == Path(folder)]


def choices(folder: str = "") -> str:
    """Returns what may be given: a file, or a name of this package's own configs."""
    return f"give the path of a file, or one of {', '.join(names(folder))}"
