"""Every field of a comparison with its default; a study's file fills them in."""

from typing import Any

import ml_collections
from ml_collections import config_dict

from configs import fashion_mnist


def get_config(base: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The fields that all comparisons share.

    Args:
      base: the config of a run, from which the variants differ in a few fields.
    """
    config = ml_collections.ConfigDict()
    # What the report answers.
    config.question = "Do learned connections pay?"
    # Of every run; config.base.<field> changes all. A run is reported on at the step
    # that was best on the validation split.
    config.base = base
    base.train.report_on = "best"
    base.train.keep_best = 1
    base.train.keep_checkpoints = 2
    # Runs of the main variant and of the reference in all its forms, of seeds
    # first_seed, first_seed + 1, ...; and of each other variant, None for as many.
    config.first_seed = 0
    config.seeds = 3
    config.other_seeds = config_dict.placeholder(int)
    # Runs trained at once, each in a process of its own; None for one a core on a CPU,
    # and one elsewhere.
    config.at_once = config_dict.placeholder(int)
    # Seeds of a variant that one program trains side by side; 1 for one after the
    # other, None for what is measured to be faster.
    config.together = config_dict.placeholder(int)
    # By name, the fields of a run's config in which a variant differs from the base.
    config.variants = ml_collections.ConfigDict()
    # The variant that the others are compared with, and the one the question is about.
    config.reference = "resnet"
    config.main = "dresnet"
    # Further runs of the reference, each with as much of something as the main variant:
    # parameters or flops (it is widened for them), or time (it gets more steps, by the
    # measured time of both).
    config.budgets = ("parameters", "flops", "time")
    # Validation accuracy whose time is reported.
    config.target_accuracy = 0.9
    return config


def small_fashion_mnist() -> ml_collections.ConfigDict:
    """A run on so few images, of so few pixels, that it takes about a minute."""
    base = fashion_mnist.get_config().unlock()
    base.data.train_examples = 10_000
    base.data.validation_examples = 2_000
    base.model.stem = "pooled"
    base.model.width = 8
    base.train.num_epochs = 6
    base.train.log_every_steps = 39
    base.train.checkpoint_every_steps = 1000
    return base


def dresnet(gate: str = "sigmoid", **connections: Any) -> dict[str, Any]:
    """The fields of a DResNet-18 with some gate function, and other connections.

    By default they are the published ones, which the results compare.
    """
    published = {"topology": "dense", "projection": "per_edge", "initial_gate": 0.5}
    own = {"gate": gate} | published | connections
    return {"model": {"name": "dresnet18", "connections": own}}
