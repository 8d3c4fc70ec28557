"""Defines what all commands share: flags, help, one-line errors, JSON at the end.

Nothing heavy is imported here, nor by a command before its flags are checked: `--help`
and a misspelt flag or config field are answered without JAX.
"""

import fnmatch
import json
import logging as stdlib_logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from dresnet_jax import errors, signals
from dresnet_jax.commands import config_files
from dresnet_jax.errors import RunFailedError, UserError
from dresnet_jax.training import json_files, run_config

_SHARED_HELP = {
    "config": "The config: a name that `dresnet configs` lists, or the path of a file. "
    "--config.<field>=<value> changes a field of it; dresnet_jax/defaults.py explains "
    "every field.",
    "workdir": "Directory of the run.",
    "overwrite": "Delete what the workdir holds of a run, and start from scratch.",
    "compilation_cache": "Directory where compiled programs are kept, or off. "
    "Default: $JAX_COMPILATION_CACHE_DIR, or dresnet_jax/xla in $XDG_CACHE_HOME or "
    "~/.cache.",
    "json": "Print one JSON object as the last line.",
}

_DEFINE: dict[type, Callable[..., flags.FlagHolder]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    list: flags.DEFINE_list,
}


class Command:
    """A command of the command line: its flags, and how it runs and ends.

    Each command has flags of its own, so that several can be imported and called by one
    program. It defines its further flags with `command.flag`, and its function
    with `@command.main`; `command.run` may then be called any number of times.

    Attributes:
      flags: its own.
      configs: where its own configs lie among those of this package.
    """

    def __init__(
        self,
        doc: str | None,
        shared: str,
        *,
        words: Sequence[str] = (),
        rest: bool = False,
        default_config: str | None = None,
        configs: str = "",
    ) -> None:
        """Defines the flags that it shares with other commands.

        Args:
          doc: the text of its help.
          shared: names of those flags, separated by spaces. A command that has
            `overwrite` resumes without it, so SIGTERM ends it with exit code 75 at any
            time.
          words: names of the words without dashes that it takes, and passes to `main`.
          rest: whether any number of words may follow them.
          default_config: the config where none is given.
          configs: where its own configs lie among those of this package.
        """
        self.flags = flags.FlagValues()
        self._doc = doc or ""
        self._words = words
        self._rest = rest
        self._default_config = default_config
        self.configs = configs
        self._main: Callable[..., None] | None = None
        self._renamed: dict[str, str] = {}
        # That of the newest call, where config_flags looks for the overrides; and as it
        # was typed.
        self._argv: list[str] = []
        self._typed: list[str] = []
        for name in shared.split():
            text = _SHARED_HELP[name]
            if name == "config":
                config_flags.DEFINE_config_file(
                    name, None, text, self.flags, sys_argv=self._argv
                )
            else:
                self.flag(name, False if name in ("overwrite", "json") else str, text)

    def flag(
        self, name: str, default: Any, text: str, **options: Any
    ) -> flags.FlagHolder:
        """Defines a flag of this command alone.

        Args:
          name: of the flag.
          default: its value if it is not given, or the type of a flag that is then
            None.
          text: its help.
          **options: `lower_bound` of a number, `enum_values` of a word.
        """
        is_type = isinstance(default, type)
        kind, value = (default, None) if is_type else (type(default), default)
        define = flags.DEFINE_enum if "enum_values" in options else _DEFINE[kind]
        return define(name, default=value, help=text, flag_values=self.flags, **options)

    def renamed(self, old: str, new: str) -> None:
        """Lets a flag be given by its old name too, which prints the new one."""
        self._renamed[old] = new

    def main(self, function: Callable[..., None]) -> Callable[..., None]:
        """Takes the function that the command runs; use as a decorator."""
        self._main = function
        return function

    def run(self, argv: Sequence[str] | None = None) -> int:
        """Parses a command line and runs the command.

        Args:
          argv: the program's name and its arguments; `sys.argv` if None.

        Returns:
          The exit code: 0, 1 where the run failed, 2 for a wrong value, 130 for Ctrl-C,
          75 where a run was told to stop and is saved, 124 where its watchdog ended it.
        """
        argv = list(sys.argv if argv is None else argv)
        _log_warnings_only()
        assert self._main is not None, "no function was decorated"
        try:
            if {"--help", "-h", "-help"} & set(argv[1:]):
                print(self._help(), flush=True)
                return 0
            numbers = [signal.SIGTERM] if "overwrite" in self.flags else []
            with signals.handled(numbers, _end_by_sigterm), signals.interruptible():
                self._main(*self._parse(argv))
        except UserError as error:
            return _failed(f"error: {error}", 2)
        except RunFailedError as error:
            return _failed(f"error: {error}", error.exit_code)
        except flags.Error as error:
            return _failed(f"error: {' '.join(str(error).split())}", 2)
        except BrokenPipeError:
            # The reader of the output has ended, as `head` does. Python would say so
            # once more when it flushes at its exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            # A full disk, a directory without permission: a traceback would not help.
            is_of_file = error.filename is not None and error.strerror
            words = f"{error.filename}: {error.strerror}" if is_of_file else error
            return _failed(f"error: {words}.", 1)
        except KeyboardInterrupt as error:
            return _failed(f"interrupted {error}".strip(), 130)
        return 0

    @property
    def line(self) -> str:
        """The command line, as it may be typed again."""
        program, *words = self._typed
        return shlex.join(["python", "-m", f"dresnet_jax.{Path(program).stem}", *words])

    def config(self) -> ml_collections.ConfigDict:
        """Returns the config that was given.

        Raises:
          UserError: none was given.
        """
        if self.flags.config is None:
            raise UserError(
                f"--config is missing: {config_files.choices(self.configs)}."
            )
        return self.flags.config

    def workdir(self) -> epath.Path:
        """Returns the run directory that was given.

        Raises:
          UserError: none was given.
        """
        return self.directory("workdir", "of the run")

    def directory(self, flag: str, what: str = "that is written") -> epath.Path:
        """Returns the directory that a flag names.

        Raises:
          UserError: none was given.
        """
        name = self.flags[flag].value
        if not name:
            raise UserError(f"--{flag} is missing: give the directory {what}.")
        return epath.Path(name).expanduser()

    def use_compilation_cache(self) -> None:
        """Keeps compiled programs where --compilation_cache says.

        Imports JAX: call it after the flags have been checked.
        """
        from dresnet_jax.training import compilation_cache

        compilation_cache.use(self.flags.compilation_cache)

    def finish(self, result: dict[str, Any]) -> None:
        """Prints the result as the last line, if --json was given."""
        if self.flags.json:
            print(json.dumps(json_files.finite(result), allow_nan=False), flush=True)

    def _parse(self, argv: list[str]) -> list[str]:
        for name in [name for name in self.flags if "." in name]:
            delattr(self.flags, name)  # Fields that an earlier call has changed.
        self.flags.unparse_flags()
        argv = [self._with_new_name(word) for word in argv]
        if self._default_config and not any(
            re.match(r"--?config(=|$)", word) for word in argv
        ):
            argv.insert(1, f"--config={self._default_config}")
        self._typed = list(argv)
        has_config = "config" in self.flags
        tree = config_files.check(argv, self.configs) if has_config else None
        self._argv[:] = argv
        try:
            given = self.flags(argv)[1:]
        except flags.UnrecognizedFlagError as error:
            name = error.flagname
            meant = [f"config.{path}" for path in config_files.elsewhere(tree, name)]
            raise errors.unknown("flag", name, list(self.flags), meant) from None
        words = self._words
        if len(given) > len(words) and not self._rest:
            raise UserError(
                f"'{given[len(words)]}' is not understood: give values as --name=value."
            )
        if len(given) < len(words):
            raise UserError(f"A word is missing: the {words[len(given)]}. See --help.")
        return given

    def _with_new_name(self, word: str) -> str:
        match = re.match(r"--?([\w.]+)(?==|$)", word)
        if not match:
            return word
        new = self._renamed.get(match[1], run_config.new_name(match[1]))
        if new == match[1]:
            return word
        logging.warning("--%s is now --%s.", match[1], new)
        return f"--{new}{word[match.end() :]}"

    def _help(self) -> str:
        lines = [self._doc.strip(), "", "Flags:"]
        # --json last.
        for name in sorted(self.flags, key=lambda name: name == "json"):
            flag = self.flags[name]
            default = flag.default
            text = "" if default in (None, False) else f" Default: {default}."
            lines.append(f"  --{name}: {flag.help}{text}")
        return "\n".join(lines)


def _end_by_sigterm(*_: object) -> None:
    """Handles SIGTERM where nothing else does: ends the process with exit code 75.

    While steps run, `processes.stop_signals` handles it, and saves. Before and after
    them all that is kept is on disk, and files are written whole or not at all.
    """
    # Not by print, which may be under way; nor by an exception, which a callback of JAX
    # may lose.
    os.write(2, errors.STOPPED_LINE.encode())
    os._exit(errors.PREEMPTED_EXIT_CODE)


def new_file(flag: str, name: str | None, suffix: str) -> epath.Path:
    """Returns the file that a flag names.

    Raises:
      UserError: it has another suffix, or its directory does not exist.
    """
    if not name or not name.endswith(suffix):
        raise UserError(f"--{flag}={name} must be the name of a {suffix} file.")
    path = epath.Path(name).expanduser()
    if not path.parent.is_dir():
        raise UserError(f"--{flag}={name}: there is no directory {path.parent}.")
    return path


def matching(kind: str, names: Collection[str], patterns: Sequence[str]) -> list[str]:
    """Returns the names that match one of the patterns; all where there is none.

    Raises:
      UserError: no name of that kind does.
    """
    result = {name for x in patterns or ["*"] for name in fnmatch.filter(names, x)}
    if not result:
        raise errors.unknown(kind, " ".join(patterns), names)
    return sorted(result)


def steps_range(flag: str, text: str | None) -> range:
    """Returns the steps that a flag names as FIRST:LAST, both included; none for None.

    Raises:
      UserError: it has another form.
    """
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--{flag}={text} must be FIRST:LAST, such as 100:105.")
    return range(int(match[1]), int(match[2]) + 1)


def _log_warnings_only() -> None:
    """Sends warnings to today's standard error, one line each."""
    flags.FLAGS.mark_as_parsed()  # Else absl says that it logs too early.
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    handler = logging.get_absl_handler()
    handler.setFormatter(stdlib_logging.Formatter("%(levelname)s: %(message)s"))
    handler.python_handler.stream = sys.stderr


def _failed(message: str, code: int) -> int:
    print(errors.printable(message), file=sys.stderr, flush=True)
    return code
