"""Writes a run's network as StableHLO, for programs that do not have this package.

    python -m dresnet_jax.export --workdir=runs/digits --to=exported
    python -m dresnet_jax.predict --exported=exported image.png

The network is that of the newest checkpoint, for inference: batch norms stand in the
kernels, and gates are numbers. The directory holds network.jax, which
jax.export.deserialize reads, signature.json and weights.safetensors.
"""

import sys

from dresnet_jax.commands import cli

command = cli.Command(__doc__, "workdir compilation_cache json")

command.flag("to", str, "Directory that is written.")


@command.main
def main() -> None:
    """Reads, folds, writes."""
    directory = command.workdir()
    to = command.directory("to")

    from dresnet_jax.inference import exported
    from dresnet_jax.training import evaluation

    command.use_compilation_cache()
    exp, restored = evaluation.open_run(directory)
    about = {"workdir": str(directory), "step": restored.step}
    signature = exported.write(exp, restored.state, to, about)
    for end in ("input", "output"):
        what = signature[end]
        print(f"{end}: {what['name']} {what['dtype']} {what['shape']}")
    print(f"exported: {to}")
    command.finish({"to": str(to)} | signature)


if __name__ == "__main__":
    sys.exit(command.run())
