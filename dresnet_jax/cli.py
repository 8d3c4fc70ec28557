"""What all commands share: flags, help, errors in one line, and JSON at the end."""

import json
import logging as stdlib_logging
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from dresnet_jax.errors import RunFailedError, UserError, unknown

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of the config, such as configs/digits.py; --config.<field>=<value> changes "
    "a field of it. configs/common.py explains every field.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Delete what the workdir holds of a run, and start anew."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object as the last line.")


def config() -> ml_collections.ConfigDict:
    """The config that the person chose.

    Raises:
      UserError: none was chosen.
    """
    if _CONFIG.value is None:
        raise UserError(f"--config is missing: {_config_files()}.")
    return _CONFIG.value


def workdir() -> epath.Path:
    """The run directory that the person chose.

    Raises:
      UserError: none was chosen.
    """
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: give the directory of the run.")
    return epath.Path(_WORKDIR.value).expanduser()


def overwrite() -> bool:
    """Whether what the run directory holds of a run may be deleted."""
    return _OVERWRITE.value


def destination(name: str | None) -> epath.Path:
    """The directory of --to, that the person wants written.

    Raises:
      UserError: none was named.
    """
    if not name:
        raise UserError("--to is missing: give the directory that is written.")
    return epath.Path(name).expanduser()


def picture_file(name: str | None) -> epath.Path:
    """The file of a picture that the person named.

    Raises:
      UserError: it has no such name, or its directory does not exist.
    """
    if not name or not name.endswith(".png"):
        raise UserError(f"--out={name} must be the name of a .png file.")
    path = epath.Path(name).expanduser()
    if not path.parent.is_dir():
        raise UserError(f"--out={name}: there is no directory {path.parent}.")
    return path


def steps_range(flag: str, text: str | None) -> range:
    """The steps that a person named as FIRST:LAST, both included; none for None.

    Raises:
      UserError: it has no such form.
    """
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--{flag}={text} must be FIRST:LAST, such as 100:105.")
    return range(int(match[1]), int(match[2]) + 1)


def use_compilation_cache(name: str) -> None:
    """Keeps compiled programs in a directory, and takes those that it holds.

    Raises:
      UserError: it cannot be written.
    """
    path = epath.Path(name).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--compilation_cache={name} cannot be written: {error.strerror or error}."
        ) from error
    jax.config.update("jax_compilation_cache_dir", os.fspath(path))


def finish(result: dict[str, Any]) -> None:
    """Prints the result as the last line, if JSON was asked for."""
    if _JSON.value:
        print(json.dumps(result), flush=True)


def run(
    main: Callable[..., None],
    *,
    uses: Sequence[str],
    words: Sequence[str] = (),
    rest: str | None = None,
    default_config: str | None = None,
) -> NoReturn:
    """Parses the command line, runs a command and exits.

    The exit code is 0, 1 where the run failed, 2 for a wrong value, 130 for Ctrl-C, 75
    where a run was told to stop and is saved, 124 where its watchdog ended it.

    Args:
      main: the command; its module's docstring is the help's text.
      uses: names of the flags that it reads.
      words: names of the words without dashes that it takes, and passes to `main`.
      rest: name of a word after them, which may be given any number of times.
      default_config: the config file where none is given.
    """
    doc = sys.modules["__main__"].__doc__ or ""
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        print(_help(doc, uses))
        sys.exit(0)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    formatter = stdlib_logging.Formatter("%(levelname)s: %(message)s")
    logging.get_absl_handler().setFormatter(formatter)
    try:
        main(*_parse(sys.argv, uses, words, rest, default_config))
    except UserError as error:
        _fail(f"error: {error}", 2)
    except flags.Error as error:
        _fail(f"error: {' '.join(str(error).split())}", 2)
    except RunFailedError as error:
        _fail(f"error: {error}", error.exit_code)
    except OSError as error:
        # A full disk, a directory without permission: nothing a traceback would mend.
        _fail(f"error: {error}", 1)
    except KeyboardInterrupt as error:
        _fail(f"interrupted {error}".strip(), 130)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def _parse(
    argv: list[str],
    uses: Sequence[str],
    words: Sequence[str],
    rest: str | None,
    default_config: str | None,
) -> list[str]:
    named = {match[1] for match in (re.match(r"--?([\w-]+)", a) for a in argv) if match}
    for name in sorted(named & {"config", "workdir", "json"} - set(uses)):
        raise UserError(f"--{name} is not a flag of this command.")
    if default_config and not any(re.match(r"--?config(=|$)", a) for a in argv):
        # In argv itself, where config_flags looks for the overrides.
        argv.insert(1, f"--config={default_config}")
    _check_config(argv)
    given = flags.FLAGS(argv)[1:]
    if len(given) > len(words) and not rest:
        raise UserError(
            f"'{given[len(words)]}' is not understood: give values as --name=value."
        )
    wanted = [*words, rest] if rest else words
    if len(given) < len(wanted):
        raise UserError(f"A word is missing: the {wanted[len(given)]}. See --help.")
    return given


def _help(doc: str, uses: Sequence[str]) -> str:
    lines = [doc.strip(), "", "Flags:"]
    for name in uses:
        flag = flags.FLAGS[name]
        default = "" if flag.default in (None, False) else f" Default: {flag.default}."
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)


def _check_config(argv: list[str]) -> None:
    """Finds mistakes in --config flags whose own messages would be a traceback.

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
            raise UserError(f"--config.{fields[0]} needs --config: {_config_files()}.")
        return
    if not Path(path).is_file():
        files = _config_files(Path(path).parent)
        raise UserError(f"Config file '{path}' does not exist: {files}.")
    file = Path(path)
    # Config files import each other as configs.<name>, from wherever one stands.
    sys.path.append(str(file.resolve().parent.parent))
    tree = _load(file)
    for field in fields:
        _check_field(tree, field)


def _load(file: Path) -> ml_collections.ConfigDict:
    try:
        tree = runpy.run_path(str(file))["get_config"]()
    # A config is code: any error in it is the person's to mend.
    except Exception as error:
        lines = [
            f.lineno
            for f in traceback.extract_tb(error.__traceback__)
            if f.filename == str(file)
        ]
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(
            f"Config file '{file}'{where}: {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
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
            raise unknown(f"field of {inside}", part, list(node))
        node = node[part]
    if isinstance(node, ml_collections.ConfigDict):
        raise UserError(f"config.{field} is a group: set one of {', '.join(node)}.")


def _config_files(near: Path = Path("configs")) -> str:
    """What a person may give: what lies near, if those are configs."""
    configs = Path("configs")
    directory = near if near.is_dir() and configs in near.parents else configs
    found = sorted(
        str(path)
        for path in directory.glob("*.py")
        if path.stem not in ("__init__", "common")
    )
    if not found:
        return "give the path of a config; there is no directory configs here"
    return f"give one of {', '.join(found)}"
