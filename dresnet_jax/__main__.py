"""The one command of this package, `dresnet` or `python -m dresnet_jax`."""

import importlib
import inspect
import sys
from collections.abc import Sequence

import dresnet_jax
from dresnet_jax import errors
from dresnet_jax.commands import COMMANDS

_HELP = """\
Residual image networks whose skip connections are learned, in JAX and Flax.

    dresnet train --config=digits --workdir=runs/digits
    dresnet COMMAND --help

Commands:
{commands}
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names.

    Args:
      argv: the program's name and its arguments; `sys.argv` if None.

    Returns:
      The command's exit code; 2 where there is no such command.
    """
    words = (sys.argv if argv is None else argv)[1:]
    name, *arguments = words or ["--help"]
    if name in ("--help", "-h", "-help"):
        print(_help(), end="")
        return 0
    if name == "--version":
        print(dresnet_jax.__version__)
        return 0
    if name not in COMMANDS:
        error = errors.unknown("command", name, COMMANDS)
        print(f"error: {error}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"dresnet_jax.commands.{name}")
    return module.command.run([name, *arguments])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = []
    for name in COMMANDS:
        module = importlib.import_module(f"dresnet_jax.commands.{name}")
        first = (inspect.getdoc(module) or "").partition("\n")[0]
        lines.append(f"    {name:{width}}  {first}")
    return _HELP.format(commands="\n".join(lines))


if __name__ == "__main__":
    sys.exit(run())
