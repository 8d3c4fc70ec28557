"""Checks of a config's values, before anything is made of them."""

import math

import ml_collections

from dresnet_jax import defaults
from dresnet_jax.data import catalog
from dresnet_jax.errors import UserError, pick
from dresnet_jax.ranges import RANGES


def check(config: ml_collections.ConfigDict) -> None:
    """Checks each field of a config by itself.

    Raises:
      UserError: a number is not finite, above what arrays count, or out of its range.
    """
    for path, value in defaults.fields(config):
        several = value if isinstance(value, list | tuple) else (value,)
        for number in several:
            is_huge = isinstance(number, int) and not abs(number) < 2**32
            is_none = isinstance(number, float) and not math.isfinite(number)
            if is_huge or is_none:
                raise UserError(
                    f"{path} = {value} must be finite, and whole numbers below 2**32."
                )
        if path in RANGES and value is not None and not _within(value, RANGES[path]):
            raise UserError(f"{path} = {value} must be in {RANGES[path]}.")


def check_data(data: ml_collections.ConfigDict, dataset: catalog.Dataset) -> None:
    """Checks what `config.data` asks for that not every dataset can have.

    Raises:
      UserError: a value does not fit the dataset.
    """
    if data.rand_augment_layers and dataset.channels not in (1, 3):
        raise UserError(
            f"data.rand_augment_layers = {data.rand_augment_layers} needs images of 1 "
            f"or 3 channels; {dataset.name} has {dataset.channels}."
        )


def num_steps(train: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """Returns the run's length, and checks fields of `config.train` by each other.

    Raises:
      UserError: a value is wrong.
    """
    pick("train.on_non_finite", train.on_non_finite, dict.fromkeys(("stop", "skip")))
    pick("train.report_on", train.report_on, dict.fromkeys(("last", "best")))
    if train.report_on == "best" and not train.keep_best:
        raise UserError("train.report_on = best needs a train.keep_best above 0.")
    if train.steps_per_call > train.log_every_steps:
        raise UserError(
            f"train.steps_per_call = {train.steps_per_call} must not be above "
            f"train.log_every_steps = {train.log_every_steps}."
        )
    if train.num_steps is not None:
        return train.num_steps
    if train.num_epochs is None:
        raise UserError("train.num_steps or train.num_epochs must be set.")
    number = math.ceil(train.num_epochs * steps_per_epoch)
    if not _within(number, RANGES["train.num_steps"]):
        raise UserError(
            f"train.num_epochs = {train.num_epochs}: the number of steps, {number}, "
            f"must be in {RANGES['train.num_steps']}."
        )
    return number


def _within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(", "))
    is_above = value > low or (value == low and interval[0] == "[")
    is_below = value < high or (value == high and interval[-1] == "]")
    return is_above and is_below
