"""Augmentation of a batch on the device, by dm-pix."""

import dm_pix
import jax
import jax.numpy as jnp


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Pads each image with zeros and crops it, at random, to its old size.

    Args:
      key: RNG key.
      images: [batch, height, width, channels].
      padding: pixels added a side; 0 returns the images as they are.

    Returns:
      [batch, height, width, channels].
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
