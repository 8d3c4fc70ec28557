"""Augmentation of a batch on the device: by dm-pix, and what it does not have.

Pixels keep their scale, 0 to 255, and every sum of them is exact in float32, so that no
compiler, whatever it fuses for however many devices, changes a bit of a batch.
"""

from collections.abc import Sequence

import dm_pix
import jax
import jax.numpy as jnp


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Crops each of [batch, height, width, channels], at random, to its old size.

    Before, `padding` zero pixels are added a side; 0 returns the images as they are.
    """
    if not padding:
        return images
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    keys = jax.random.split(key, images.shape[0])
    crop = jax.vmap(lambda k, image: dm_pix.random_crop(k, image, images.shape[1:]))
    return crop(keys, jnp.pad(images, sides))


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Flips each of [batch, height, width, channels] left-right with chance 0.5."""
    keys = jax.random.split(key, images.shape[0])
    return jax.vmap(dm_pix.random_flip_left_right)(keys, images)


def cut_out(
    key: jax.Array, images: jax.Array, side: int, fill: Sequence[int]
) -> jax.Array:
    """Sets a square of each image to one colour (DeVries and Taylor 2017).

    Args:
      key: RNG key.
      images: [batch, height, width, channels].
      side: of the square, pixels; parts of it may lie outside the image.
      fill: the colour, [channels].

    Returns:
      [batch, height, width, channels].
    """
    keys = jax.random.split(key, images.shape[0])
    size = images.shape[1:3]

    def cut(key: jax.Array, image: jax.Array) -> jax.Array:
        inside = _box(key, size, (side, side))[..., None]
        return jnp.where(inside, jnp.asarray(fill, image.dtype)[None, None], image)

    return jax.vmap(cut)(keys, images)


def mix_up(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with another of the batch (Zhang et al. 2018).

    Args:
      key: RNG key.
      images: [batch, height, width, channels], whole numbers from 0 to 255.
      targets: probability of each class, [batch, classes].
      alpha: the weight, one for the batch, is drawn from Beta(alpha, alpha).

    Returns:
      Images and targets, mixed with the same weight.
    """
    partners, key = _partners(key, images)
    weight = _beta(key, alpha)
    return _mix(weight, images, partners), _mix(weight, targets, partners)


def cut_mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Pastes a box of another example into each (Yun et al. 2019).

    Args:
      key: RNG key.
      images: [batch, height, width, channels].
      targets: probability of each class, [batch, classes].
      alpha: the share of the image that stays, before the box is cut off at the
        border, is drawn from Beta(alpha, alpha); one box for the batch.

    Returns:
      Images, and targets mixed by the area that was pasted.
    """
    partners, key = _partners(key, images)
    share_key, box_key = jax.random.split(key)
    side = jnp.sqrt(1 - _beta(share_key, alpha))
    height, width = images.shape[1:3]
    box = _box(box_key, (height, width), (side * height, side * width))
    pasted = jnp.where(box[None, :, :, None], images[partners], images)
    return pasted, _mix(1 - jnp.mean(box), targets, partners)


def _partners(key: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Another example for each of the batch, [batch], and a fresh key."""
    order_key, key = jax.random.split(key)
    return jax.random.permutation(order_key, images.shape[0]), key


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    """Draws from Beta(alpha, alpha), to 12 bits: times a pixel's 8 it is exact."""
    return jnp.round(jax.random.beta(key, alpha, alpha) * 2**12) / 2**12


def _mix(weight: jax.Array, values: jax.Array, partners: jax.Array) -> jax.Array:
    return weight * values + (1 - weight) * values[partners]


def _box(
    key: jax.Array,
    size: tuple[int, ...],
    sides: tuple[jax.Array | int, jax.Array | int],
) -> jax.Array:
    """A box of the given sides, centred at any pixel: [height, width], bool."""
    inside = []
    for axis_key, length, side in zip(jax.random.split(key), size, sides, strict=True):
        start = jax.random.randint(axis_key, (), 0, length) - jnp.floor_divide(side, 2)
        positions = jnp.arange(length)
        inside.append((positions >= start) & (positions < start + side))
    return inside[0][:, None] & inside[1][None, :]
