"""Lists the models that a config may name.

    dresnet models
    dresnet models 'd*50*'

--config.model.name takes their names. A d before the name of another is the same
network with learned connections.
"""

import sys

from dresnet_jax.commands import cli

command = cli.Command(__doc__, "json", rest=True)


@command.main
def main(*patterns: str) -> None:
    """Prints the names that match one of the patterns."""
    from dresnet_jax.models import zoo

    names = cli.matching("model", zoo.MODELS, patterns)
    print(*names, sep="\n")
    command.finish({"models": names})


if __name__ == "__main__":
    sys.exit(command.run())
