"""Pictures of images, and how all pictures are written to files."""

import matplotlib
import numpy as np
from etils import epath

matplotlib.use("Agg")  # Before pyplot: pictures are only ever written to files.

from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def save(figure: Figure, path: epath.Path) -> None:
    """Writes a figure to a file, and closes it."""
    with path.open("wb") as file:
        figure.savefig(file, dpi=150)
    plt.close(figure)


def before_and_after(before: np.ndarray, after: np.ndarray) -> Figure:
    """Returns a row of images as they are stored, over what augmentation made of each.

    Args:
      before: [images, height, width, channels], values from 0 to 1.
      after: the same.
    """
    figure, axes = plt.subplots(
        2, len(before), figsize=(len(before), 2.2), squeeze=False, layout="constrained"
    )
    for row, images, name in zip(
        axes, (before, after), ("stored", "seen"), strict=True
    ):
        row[0].set_ylabel(name)
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    return figure
