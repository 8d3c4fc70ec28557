"""The error a person can mend, and the look-up by name that raises it."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

# Of a command that was told to stop and resumes where it is called again (EX_TEMPFAIL).
PREEMPTED_EXIT_CODE = 75

# What such a command says where nothing was under way that had to be saved.
STOPPED_LINE = "error: told to stop: the same command resumes.\n"


def printable(text: str) -> str:
    """Returns a text in one line, without what would control a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UserError(ValueError):
    """A wrong value given by a person; its one-line text is all they need.

    The commands print the text and exit with code 2. Any other exception is a
    defect of the program and keeps its traceback.
    """

    def __init__(self, text: str) -> None:
        """Keeps the text in one line, whatever names and values are in it."""
        super().__init__(printable(text))


class RunFailedError(RuntimeError):
    """A run that cannot continue, by no wrong value.

    Attributes:
      exit_code: of the commands.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        """Keeps the text in one line, whatever names and values are in it."""
        super().__init__(printable(text))


def unknown(
    kind: str, name: object, choices: Iterable[str], meant: Iterable[str] = ()
) -> UserError:
    """Makes the error for an unknown name: the nearest match, then all choices.

    Args:
      kind: what it should be the name of.
      name: what was given.
      choices: what could be.
      meant: what is more likely meant than the nearest of the choices.
    """
    choices = sorted(choices)
    near = list(meant) or difflib.get_close_matches(str(name), choices, 1, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UserError(f"Unknown {kind} '{name}'.{hint} Choices: {', '.join(choices)}.")


def pick(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """Looks a name up in a registry.

    Raises:
      UserError: the name is not there.
    """
    if name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]
