"""Prints what lets a shell complete the words of `dresnet`.

    eval "$(dresnet completion bash)"      # in ~/.bashrc
    eval "$(dresnet completion zsh)"       # in ~/.zshrc, after compinit

Then Tab completes commands, flags, the names of configs, and their fields.
"""

import importlib
import sys
from collections.abc import Iterator

from absl import flags

from dresnet_jax import defaults, errors
from dresnet_jax.commands import COMMANDS, cli, config_files

command = cli.Command(__doc__, "", words=["shell"])

_LINE = command.flag("line", str, "Print what the last word of a line may become.")

# bash takes a value for a word of its own, after the =.
_SCRIPTS = {
    "bash": """\
_dresnet() {
  local IFS=$'\\n' line=${COMP_LINE:0:COMP_POINT}
  local word=${line##* }
  local typed=${word%"${COMP_WORDS[COMP_CWORD]}"}
  [[ $word == *= ]] && typed=$word
  COMPREPLY=($(dresnet completion bash --line="$line"))
  COMPREPLY=("${COMPREPLY[@]#"$typed"}")
  [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
}
complete -o default -F _dresnet dresnet
""",
    "zsh": """\
_dresnet() {
  local -a all
  all=(${(f)"$(dresnet completion zsh --line="${words[1,CURRENT-1]} $PREFIX")"})
  if (( ! $#all )); then
    compset -P '*='
    _files
    return
  fi
  compadd -S '' -- ${(M)all:#*[=.]}
  compadd -- ${all:#*[=.]}
}
compdef _dresnet dresnet
""",
}


@command.main
def main(shell: str) -> None:
    """Prints the shell's script, or what may come."""
    script = errors.pick("shell", shell, _SCRIPTS)
    if _LINE.value is None:
        print(script, end="")
        return
    *before, word = _LINE.value.split(" ")
    words = [x for x in before if x]
    for choice in sorted(set(_choices(words, word))):
        if choice.startswith(word):
            print(choice)


def _choices(words: list[str], word: str) -> Iterator[str]:
    """What a word may become after others, the first of which is the program."""
    if len(words) < 2:
        yield from (*COMMANDS, "--help", "--version")
        return
    if words[1] not in COMMANDS:
        return
    module = importlib.import_module(f"dresnet_jax.commands.{words[1]}")
    own = module.command
    if word.startswith("--config."):
        yield from _fields(own, words, word)
        return
    for name in own.flags:
        flag = own.flags[name]
        if name == "config":
            yield from (f"--config={x}" for x in config_files.names(own.configs))
            yield "--config."
        elif isinstance(flag, flags.EnumFlag):
            yield from (f"--{name}={x}" for x in flag.parser.enum_values)
        yield f"--{name}" if flag.boolean else f"--{name}="
    yield "--help"


def _fields(own: cli.Command, words: list[str], word: str) -> Iterator[str]:
    """The next part of the path of each field that begins as a word does."""
    named = [x for x in words if x.startswith("--config=")]
    try:
        tree = config_files.check(named[:1], own.configs)
    except errors.UserError:
        tree = None
    done = word.rpartition(".")[0]
    for path, _ in defaults.fields(tree or defaults.get_config()):
        flag = f"--config.{path}"
        if flag.startswith(f"{done}."):
            part, dot, _ = flag[len(done) + 1 :].partition(".")
            yield f"{done}.{part}{dot or '='}"


if __name__ == "__main__":
    sys.exit(command.run())
