"""Strict settings for all tests, and the commands as a person would run them."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import pytest

from configs import digits, synthetic

ROOT = Path(__file__).parent.parent
FASHION_MNIST_ARCHIVES = Path("/usr/share/datasets/fashion-mnist")

# How long something takes decides no test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Arrays of different ranks do not mix unseen.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shared by all processes of a test run, so that each program is compiled once; those
# that pytest starts are told of it by this variable.
_CACHE = "DRESNET_JAX_TEST_CACHE"
if _CACHE not in os.environ:
    _directory = tempfile.TemporaryDirectory(prefix="dresnet_jax_cache_")
    os.environ[_CACHE] = _directory.name
CACHE_SETTINGS = {
    "JAX_COMPILATION_CACHE_DIR": os.environ[_CACHE],
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}
jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# For programs that are many and small: to optimise them would take the longest.
compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def start_python(*arguments, devices=1):
    """Starts Python with some arguments, on a number of fake CPU devices."""
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        # `env`, since a shell's background job ignores Ctrl-C and hands that down.
        ["env", "--default-signal=INT", sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | CACHE_SETTINGS | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(*arguments, devices=1, timeout=500):
    """Runs Python to its end: (exit code, standard output, standard error)."""
    process = start_python(*arguments, devices=devices)
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def start_command(name, *arguments, devices=1):
    """Starts `python -m dresnet_jax.<name>`."""
    return start_python("-m", f"dresnet_jax.{name}", *arguments, devices=devices)


def run_command(name, *arguments, **options):
    """Runs `python -m dresnet_jax.<name>` to its end, as `run_python`."""
    return run_python("-m", f"dresnet_jax.{name}", *arguments, **options)


def json_lines(values):
    """The text of a file with one JSON object a line."""
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.fixture(scope="session")
def fashion_mnist(tmp_path_factory):
    """The data directory of Fashion-MNIST, prepared by TFDS's own builder."""
    if not FASHION_MNIST_ARCHIVES.exists():
        pytest.skip("Debian's package dataset-fashion-mnist is missing")
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("requirements-prepare.txt is not installed")
    directory = tmp_path_factory.mktemp("data")
    code, _, errors = run_command(
        "prepare",
        "--dataset=fashion_mnist",
        f"--data_dir={directory}",
        f"--from_dir={FASHION_MNIST_ARCHIVES}",
    )
    assert code == 0, errors
    return str(directory)


@pytest.fixture
def small_config():
    """A small DResNet on digits that trains for a few steps."""
    config = digits.get_config()
    config.model.width = 4
    config.model.blocks_per_stage = (1, 1, 1, 1)
    config.train.num_steps = 12
    config.train.log_every_steps = 5
    config.train.checkpoint_every_steps = 4
    return config


@pytest.fixture
def tiny_images_config():
    """A small DResNet on 16x16 colour images of two classes."""
    config = synthetic.get_config()
    config.data.image_size = 16
    config.data.num_classes = 2
    config.data.num_examples = 64
    config.data.batch_size = 16
    config.model.width = 4
    config.model.blocks_per_stage = (1, 1, 1)
    config.model.stem = "cifar"
    return config
