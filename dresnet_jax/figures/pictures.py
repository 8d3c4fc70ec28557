"""Writes pictures to files."""

import matplotlib
from etils import epath

matplotlib.use("Agg")  # Before pyplot: pictures are only ever written to files.

from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def save(figure: Figure, path: epath.Path) -> None:
    """Writes a figure to a file, and closes it."""
    with path.open("wb") as file:
        figure.savefig(file, dpi=150)
    plt.close(figure)
