"""Lists the configs that are part of this package.

    dresnet configs
    dresnet configs 'compare/*'

--config takes their names: dresnet train --config=digits. Those in compare/ are for
compare, which needs no compare/ before their names.
"""

import sys

from dresnet_jax.commands import cli, config_files

command = cli.Command(__doc__, "json", rest=True)


@command.main
def main(*patterns: str) -> None:
    """Prints the name and the first line of each."""
    names = cli.matching("config", config_files.shipped_names(), patterns)
    about = {name: config_files.about(name) for name in names}
    width = max(map(len, names))
    for name, line in about.items():
        print(f"{name:{width}}  {line}")
    command.finish(about)


if __name__ == "__main__":
    sys.exit(command.run())
