"""Batches: a pure function of (seed, step), augmented inside the jitted program.

Nothing but the seed and the step, not the input pipeline, not the number
of devices or processes and no restart, decides what a batch holds.
"""

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dresnet_jax.data import augment
from dresnet_jax.data.catalog import Dataset
from dresnet_jax.data.views import View
from dresnet_jax.errors import UserError


class Batch(flax.struct.PyTreeNode):
    """Examples of one step.

    Attributes:
      images: [batch, height, width, channels], float32, normalised.
      labels: [batch], int32.
      targets: probability of each class, [batch, classes], float32; the label alone
        where examples are not mixed.
      mask: [batch], bool; False where an example only fills the batch.
    """

    images: jax.Array
    labels: jax.Array
    targets: jax.Array
    mask: jax.Array


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How batches are made of a split.

    Attributes:
      batch_size: examples per step, over all devices.
      mean: subtracted from pixels in [0, 1], per channel.
      std: what they are then divided by, per channel.
      crop_padding: zero pixels added a side before a random crop.
      flip: whether images are flipped left-right at random.
      cut_out: side of the square set to the mean, in whole pixel values; 0 for none.
      mix_up: alpha of mix-up; 0 for none.
      cut_mix: alpha of cut-mix; 0 for none. A batch is mixed by one of the two.
      num_classes: of the dataset.
      view: what is done to each image on the host.
      skip_corrupt: whether another example stands in for one that cannot be read.
    """

    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    cut_out: int
    mix_up: float
    cut_mix: float
    num_classes: int
    view: View
    skip_corrupt: bool

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, dataset: Dataset
    ) -> "Recipe":
        """Makes the recipe of the `data` part of a config, for a dataset."""
        view = View(
            size=dataset.image_size,
            channels=dataset.channels,
            fixed_size=dataset.fixed_size,
            min_crop_area=config.min_crop_area,
            rand_augment_layers=config.rand_augment_layers,
            rand_augment_magnitude=config.rand_augment_magnitude,
            rule=config.pixel_rule,
            background=config.background,
        )
        return cls(
            batch_size=config.batch_size,
            mean=dataset.mean,
            std=dataset.std,
            crop_padding=config.crop_padding,
            flip=config.flip,
            cut_out=config.cut_out,
            mix_up=config.mix_up,
            cut_mix=config.cut_mix,
            num_classes=dataset.num_classes,
            view=view,
            skip_corrupt=config.skip_corrupt,
        )

    def steps_per_epoch(self, num_examples: int) -> int:
        """Counts the full batches in an epoch; left-over examples come in another.

        Raises:
          UserError: there is not one full batch.
        """
        if not 1 <= self.batch_size <= num_examples:
            raise UserError(
                f"data.batch_size = {self.batch_size} must be between 1 and the "
                f"{num_examples} training examples."
            )
        return num_examples // self.batch_size


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Draws the order of the examples in an epoch, [num_examples], int32.

    Drawn on the host, since reading from files needs it there too.
    """
    # RandomState's stream is frozen, so that no version of NumPy changes a run.
    order = np.random.RandomState((seed, epoch)).permutation(num_examples)
    return order.astype(np.int32)


def take(
    recipe: Recipe,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the examples of one step, out of a whole split on the devices.

    Args:
      recipe: how batches are made.
      images: of the split, [examples, height, width, channels], uint8; it may be
        filled up after the last example.
      labels: [examples], int32.
      order: `epoch_order` of the step's epoch, [examples].
      step: from 0, int32 scalar.

    Returns:
      Images and labels of `batch_size` examples.
    """
    steps_per_epoch = recipe.steps_per_epoch(order.shape[0])
    start = (step % steps_per_epoch) * recipe.batch_size
    indices = jax.lax.dynamic_slice(order, (start,), (recipe.batch_size,))
    return images[indices], labels[indices]


def train_batch(
    recipe: Recipe,
    pixels: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    step: jax.Array,
) -> Batch:
    """Returns the augmented batch of one step.

    Args:
      recipe: how it is made.
      pixels: its images, [batch, height, width, channels], uint8.
      labels: [batch], int32.
      key: of the run.
      step: from 0, int32 scalar.
    """
    crop_key, flip_key, cut_key, mix_key = jax.random.split(
        jax.random.fold_in(derive_key(key, "augment"), step), 4
    )
    pixels = augment.random_crop(crop_key, pixels, recipe.crop_padding)
    if recipe.flip:
        pixels = augment.random_flip(flip_key, pixels)
    if recipe.cut_out:
        fill = [round(255 * mean) for mean in recipe.mean]
        pixels = augment.cut_out(cut_key, pixels, recipe.cut_out, fill)
    plain = make_batch(recipe, pixels, labels)
    mixed, targets = _mix(recipe, mix_key, pixels.astype(jnp.float32), plain.targets)
    return plain.replace(images=normalise(recipe, mixed), targets=targets)


def _mix(
    recipe: Recipe, key: jax.Array, images: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes the batch by mix-up or cut-mix; by a coin where both are asked for."""
    kinds = (augment.mix_up, recipe.mix_up), (augment.cut_mix, recipe.cut_mix)
    mixes = [functools.partial(mix, alpha=alpha) for mix, alpha in kinds if alpha]
    if not mixes:
        return images, targets
    if len(mixes) == 1:
        return mixes[0](key, images, targets)
    coin = jax.random.bernoulli(jax.random.fold_in(key, 0))
    return jax.lax.cond(coin, *mixes, key, images, targets)


def make_batch(
    recipe: Recipe,
    pixels: jax.Array,
    labels: jax.Array,
    mask: jax.Array | None = None,
) -> Batch:
    """Returns a batch of [batch, height, width, channels] uint8 images, as they are.

    Args:
      recipe: how it is normalised.
      pixels: the images.
      labels: [batch], int32.
      mask: [batch], bool; None where every example counts.
    """
    return Batch(
        images=normalise(recipe, pixels),
        labels=labels,
        targets=jax.nn.one_hot(labels, recipe.num_classes),
        mask=jnp.ones(labels.shape, bool) if mask is None else mask,
    )


def normalise(recipe: Recipe, pixels: jax.Array) -> jax.Array:
    """Normalises [batch, height, width, channels], 0 to 255, by mean and std."""

    def of_channels(values: list[float]) -> jax.Array:
        return jnp.asarray(values, jnp.float32)[None, None, None, :]

    mean = of_channels([255 * mean for mean in recipe.mean])
    scale = of_channels([1 / (255 * std) for std in recipe.std])
    # In this order no compiler can join the two to one operation that rounds once.
    return (pixels.astype(jnp.float32) - mean) * scale


def derive_key(key: jax.Array, purpose: str) -> jax.Array:
    """Derives the run's key for one purpose: no two share random numbers."""
    purposes = ("init", "augment", "dropout", "search")
    return jax.random.fold_in(key, purposes.index(purpose))
