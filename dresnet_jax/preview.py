"""Draws training images as they are stored and as a network would see them.

    python -m dresnet_jax.preview --config=configs/digits.py --out=preview.png

The images are the first of a run with this config, augmented as in its first step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from dresnet_jax import cli
from dresnet_jax.analysis import plots
from dresnet_jax.data import pipeline, sources
from dresnet_jax.errors import UserError
from dresnet_jax.training import experiment

_OUT = flags.DEFINE_string("out", None, "The picture's file, such as preview.png.")
_IMAGES = flags.DEFINE_integer("images", 12, "How many are drawn.", lower_bound=2)


def main() -> None:
    """Reads, augments, draws."""
    if not _OUT.value or not _OUT.value.endswith(".png"):
        raise UserError(f"--out={_OUT.value} must be the name of a .png file.")
    path = epath.Path(_OUT.value).expanduser()
    if not path.parent.is_dir():
        raise UserError(f"--out={_OUT.value}: there is no directory {path.parent}.")
    parts = experiment.build(cli.config())
    seed, recipe = parts.config.seed, parts.recipe
    examples = sources.open_splits(parts.dataset, parts.config.data.data_dir)["train"]
    # The whole first batch, since mixing takes partners from all of it.
    order = pipeline.epoch_order(seed, 0, len(examples))[: recipe.batch_size].tolist()
    stored: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    found = examples.read(order)
    for row, (index, example) in enumerate(zip(order, found, strict=True)):
        train = functools.partial(recipe.view.train, seed=(seed, 0, row))
        for images, view in ((stored, recipe.view.evaluate), (seen, train)):
            images.append(sources.pixels(examples, index, example, view))
    labels = jnp.asarray([example.label for example in found])
    batch = jax.jit(pipeline.train_batch, static_argnums=0)(
        recipe, jnp.asarray(np.stack(seen)), labels, jax.random.key(seed), 0
    )
    count = min(_IMAGES.value, len(order))
    pixels = np.asarray(batch.images[:count]) * recipe.std + recipe.mean
    figure = plots.before_and_after(np.stack(stored[:count]) / 255, pixels.clip(0, 1))
    plots.save(figure, path)
    print(f"picture: {_OUT.value}")
    cli.finish({"picture": _OUT.value, "images": count})


if __name__ == "__main__":
    cli.run(main, uses=("config", "out", "images", "json"))
