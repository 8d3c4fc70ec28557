"""Reads weights of PyTorch's libraries into a run, and writes a run's for them.

    python -m dresnet_jax.convert --from=r50.pth --model=resnet50 --workdir=runs/r50
    python -m dresnet_jax.convert --workdir=runs/r50 --to=model.safetensors

The file is a state dict of torchvision, timm or Hugging Face: .safetensors, or .pth,
.pt or .bin, which need requirements-convert.txt. The run begins with these weights:
evaluate, predict and train continue with it, and train --config.init.workdir= takes
them for another dataset, or for a model with connections. The dataset of --config says
how many classes there are. --to writes the names of torchvision.
"""

import sys
from pathlib import Path

from etils import epath

from dresnet_jax import defaults
from dresnet_jax.commands import cli
from dresnet_jax.errors import UserError, pick

command = cli.Command(
    __doc__,
    "config workdir compilation_cache json",
    default_config="imagenet2012",
)

_FROM = command.flag("from", str, "File with the weights that are read.")
_MODEL = command.flag("model", str, "Name of the model that they are of.")
_TO = command.flag("to", str, "The .safetensors file that is written.")


@command.main
def main() -> None:
    """Reads or writes, and says what had no place."""
    directory = command.workdir()
    if _TO.value is not None and _FROM.value is None:
        command.finish(_write(directory, cli.new_file("to", _TO.value, ".safetensors")))
        return
    if _FROM.value is None or _TO.value is not None:
        raise UserError("Give one of --from and --to. See --help.")
    source = Path(_FROM.value)
    config = command.config()

    from dresnet_jax.models import zoo
    from dresnet_jax.training import experiment, torch_weights, transfer

    command.use_compilation_cache()
    if _MODEL.value:
        pick("model", _MODEL.value, zoo.MODELS)
        fields = {"model.name": _MODEL.value, "model.stem": zoo.OWN}
        config = defaults.replace(config, fields)
    exp = experiment.build(config)
    weights = torch_weights.read(source)
    spec = exp.model.spec
    placed = torch_weights.place(spec, exp.create_state(abstract=True), weights)
    state = transfer.exchange(exp.create_state(), placed.weights)
    about = {"converted_from": str(source)}
    transfer.write_start(directory, exp.config, state, about)
    print(f"{len(placed.weights)} weights in the names of {placed.scheme}")
    print(
        f"pixels are normalised by mean {exp.dataset.mean}, standard deviation "
        f"{exp.dataset.std}: --config.data.mean and --config.data.std name others"
    )
    for name in placed.missing:
        print(f"  new here: {name}")
    for name in placed.unplaced:
        print(f"  has no place here: {name}")
    command.finish(
        {
            "workdir": str(directory),
            "library": placed.scheme,
            "weights": len(placed.weights),
            "missing": list(placed.missing),
            "unplaced": list(placed.unplaced),
        }
    )


def _write(directory: epath.Path, path: epath.Path) -> dict[str, object]:
    from dresnet_jax.training import evaluation, torch_weights

    command.use_compilation_cache()
    exp, restored = evaluation.open_run(directory)
    left = torch_weights.write(exp.model.spec, restored.state, path)
    print(f"{path}: step {restored.step} of {directory}")
    for name in left:
        print(f"  left out: {name}")
    return {"workdir": str(directory), "to": str(path), "left_out": list(left)}


if __name__ == "__main__":
    sys.exit(command.run())
