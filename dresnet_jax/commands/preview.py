"""Draws training images as they are stored and as a network would see them.

    python -m dresnet_jax.preview --config=configs/digits.py --out=preview.png

The images are the first of a run with this config, augmented as in its first step.
"""

import dataclasses
import sys

from dresnet_jax.commands import cli
from dresnet_jax.data.calls import Call

command = cli.Command(__doc__, "config compilation_cache json")

_OUT = command.flag("out", str, "The picture's file, such as preview.png.")
_IMAGES = command.flag("images", 12, "How many are drawn.", lower_bound=2)


@command.main
def main() -> None:
    """Reads, augments, draws."""
    path = cli.new_file("out", _OUT.value, ".png")
    config = command.config()

    import jax
    import jax.numpy as jnp
    import numpy as np

    from dresnet_jax.data import pipeline, sources, streaming
    from dresnet_jax.figures import pictures
    from dresnet_jax.training import experiment

    command.use_compilation_cache()
    exp = experiment.build(config)
    seed, recipe = exp.config.seed, exp.recipe
    examples = sources.open_splits(exp.dataset, exp.config.data.data_dir)["train"]
    # The whole first batch, since mixing takes partners from all of it.
    rows = np.arange(recipe.batch_size)
    batches = streaming.TrainBatches(examples, recipe, seed, rows, [Call(0, 1)])
    view = dataclasses.replace(recipe.view, min_crop_area=0.0, rand_augment_layers=0)
    plain = dataclasses.replace(recipe, view=view)
    stored, seen = dataclasses.replace(batches, recipe=plain)[0], batches[0]
    train_batch = jax.jit(pipeline.train_batch, static_argnums=0)
    arrays = map(jnp.asarray, (seen.images[0], seen.labels[0]))
    batch = train_batch(recipe, *arrays, jax.random.key(seed), 0)
    count = min(_IMAGES.value, recipe.batch_size)
    pixels = np.asarray(batch.images[:count]) * recipe.std + recipe.mean
    figure = pictures.before_and_after(
        stored.images[0, :count] / 255, pixels.clip(0, 1)
    )
    pictures.save(figure, path)
    print(f"picture: {_OUT.value}")
    command.finish({"picture": _OUT.value, "images": count})


if __name__ == "__main__":
    sys.exit(command.run())
