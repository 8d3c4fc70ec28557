"""Measures what learned connections cost beside the plain network, in one run.

    python -m dresnet_jax.benchmark connections --image_size=64

Compiles the training step of the model in each form and of the same model without
connections, and prints the ratios of FLOPs, bytes, temporary memory and time. The
timed steps are interleaved, so that a drift of the machine's speed hits all alike.
Everything else about the model is in the config, configs/synthetic.py if none is given.
"""

import dataclasses
import os
import platform

import jax
from absl import flags

from dresnet_jax import cli
from dresnet_jax.analysis import connection_costs, reports
from dresnet_jax.connections import weighted_sum
from dresnet_jax.errors import pick

_MODEL = flags.DEFINE_string("model", None, "Model measured, instead of the config's.")
_FORMS = flags.DEFINE_list("forms", list(weighted_sum.FORMS), "Forms measured.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Side of the images, pixels.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images of one step.")
_RUNS = flags.DEFINE_integer("runs", 15, "Timed steps of each form.", lower_bound=1)


def main(subject: str) -> None:
    """Measures, prints."""
    pick("benchmark", subject, {"connections": None})
    config = cli.config()
    config.model.name = _MODEL.value or config.model.name
    config.data.image_size = _IMAGE_SIZE.value or config.data.image_size
    config.data.batch_size = _BATCH_SIZE.value or config.data.batch_size
    rows = connection_costs.measure(config, _FORMS.value, _RUNS.value)
    print(reports.connection_cost_table(rows))
    print(
        f"{_RUNS.value} interleaved steps of each; batch {config.data.batch_size}, "
        f"{config.data.image_size}x{config.data.image_size}, {config.model.dtype}; "
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} cores; Python {platform.python_version()}"
    )
    cli.finish(
        {
            "target": jax.default_backend(),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
    )


if __name__ == "__main__":
    cli.run(
        main,
        uses=("model", "forms", "image_size", "batch_size", "runs", "config", "json"),
        words=("subject",),
        default_config="configs/synthetic.py",
    )
