"""What evolution found, as a picture."""

from collections.abc import Mapping, Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dresnet_jax.structure.evolution.evolution import Found


def evolution(
    found: Mapping[str, Sequence[Found]],
    front: Sequence[Found],
    volumes: Mapping[str, Sequence[float]],
) -> Figure:
    """Draws error over cost of all structures, and the hypervolume over time.

    Args:
      found: by algorithm, in the order of evaluation.
      front: those of which none is better in everything.
      volumes: by algorithm, after each evaluation.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    costs = {"multiply_adds": "multiply-adds of an image", "params": "parameters"}
    for axis, (cost, label) in zip(axes, costs.items(), strict=False):
        for name, each in found.items():
            pairs = [(getattr(one, cost), one.error) for one in each]
            axis.plot(*zip(*pairs, strict=True), ".", alpha=0.6, label=name)
        pairs = [(getattr(one, cost), one.error) for one in front]
        axis.plot(
            *zip(*pairs, strict=True), "o", fillstyle="none", color="k", label="front"
        )
        axis.set_xlabel(label)
        axis.set_ylabel("validation error")
    for name, volume in volumes.items():
        axes[2].plot(range(1, len(volume) + 1), volume, label=name)
    axes[2].set_xlabel("structures trained")
    axes[2].set_ylabel("hypervolume, share of all")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle("Structures found; the front is of four objectives")
    return figure
