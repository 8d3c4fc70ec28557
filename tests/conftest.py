"""Strict settings for all tests, and the commands as a person would run them."""

import contextlib
import fcntl
import functools
import gc
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Read when JAX is imported. The cache is shared by the workers of a test run and by all
# calls of CI, so that each program is compiled once. Tests run little of what they
# compile, so that to optimise would take longer; what is timed has XLA_FLAGS="".
FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib") < "0.11":
    # The older way to emit fusions, which newer releases lack, is twice as fast.
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
    FLAGS += ["--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from configs import digits, synthetic  # noqa: E402
from dresnet_jax.training import compilation_cache  # noqa: E402

# A small network on digits: 40 steps, a little over two epochs.
SMALL = (
    "--config=configs/digits.py",
    "--config.model.width=8",
    "--config.model.blocks_per_stage=(1, 1, 1, 1)",
    "--config.train.num_steps=40",
    "--config.train.log_every_steps=1",
    "--config.train.checkpoint_every_steps=6",
)

FASHION_MNIST_ARCHIVES = Path("/usr/share/datasets/fashion-mnist")

# How long something takes decides no test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Arrays of different ranks do not mix unseen.
jax.config.update("jax_numpy_rank_promotion", "raise")

compilation_cache.use(None)

# Traces fill the heap with what lives on: to search it for garbage takes long.
gc.freeze()
gc.set_threshold(50_000, 20, 50)


def start_python(*arguments, devices=1, env=None):
    """Starts Python with some arguments, on a number of fake CPU devices."""
    settings = {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        # `env`, since a shell's background job ignores Ctrl-C and hands that down.
        ["env", "--default-signal=INT", sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | settings | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(*arguments, timeout=500, **options):
    """Runs Python to its end: (exit code, standard output, standard error)."""
    process = start_python(*arguments, **options)
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def start_command(name, *arguments, **options):
    """Starts `python -m dresnet_jax.<name>` as a process, to signal it, say."""
    return start_python("-m", f"dresnet_jax.{name}", *arguments, **options)


def run_process(name, *arguments, **options):
    """Runs `python -m dresnet_jax.<name>` as a process, as `run_python`."""
    return run_python("-m", f"dresnet_jax.{name}", *arguments, **options)


def run_command(name, *arguments):
    """Runs a command in this process: (exit code, standard output, standard error).

    Programs that this process has compiled are not compiled again.
    """
    module = importlib.import_module(f"dresnet_jax.commands.{name}")
    output, errors = io.StringIO(), io.StringIO()
    # Paths on the command line are those of a user in the checkout.
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        code = module.command.run([name, *map(str, arguments)])
    return code, output.getvalue(), errors.getvalue()


def apply(module, variables, *arguments, **options):
    """`module.apply`, as one program: each operation alone takes as long to compile."""
    compiled = jax.jit(functools.partial(module.apply, **options))
    return compiled(variables, *arguments)


def init(module, key, *arguments, **options):
    """`module.init`, as one program."""
    return jax.jit(functools.partial(module.init, **options))(key, *arguments)


def products(*options, strength=2):
    """All combinations of options, for `parametrize`; most are slow.

    Those that are not hold every combination of `strength` options: a greedy cover.
    """
    axes = list(itertools.combinations(range(len(options)), strength))

    def parts(cell):
        return {(axis, tuple(cell[i] for i in axis)) for axis in axes}

    cells = list(itertools.product(*options))
    missing = set().union(*map(parts, cells))
    fast = []
    while missing:
        fast.append(max(cells, key=lambda cell: len(parts(cell) & missing)))
        missing -= parts(fast[-1])
    return [
        pytest.param(*cell, marks=() if cell in fast else pytest.mark.slow)
        for cell in cells
    ]


def json_lines(values):
    """The text of a file with one JSON object a line."""
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The directory of a run of SMALL, trained once for all workers, and never changed.

    What the training printed is in output.txt next to it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = shared / "small_run" / "run"
    with (shared / "small_run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            code, output, errors = run_command(
                "train", *SMALL, f"--workdir={directory}"
            )
            assert code == 0, errors
            (directory.parent / "output.txt").write_text(output)
    return directory


@pytest.fixture(scope="session")
def fashion_mnist():
    """The data directory of Fashion-MNIST, prepared by TFDS's own builder.

    Kept for all calls of CI, until the code changes that prepares it.
    """
    if not FASHION_MNIST_ARCHIVES.exists():
        pytest.skip("Debian's package dataset-fashion-mnist is missing")
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("requirements-prepare.txt is not installed")
    package = ROOT / "dresnet_jax"
    makers = [package / "commands/prepare.py", *sorted(package.glob("data/*.*"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in makers)).hexdigest()
    directory = ROOT / ".cache" / "fashion_mnist" / digest[:16]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            unfinished = directory.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            code, _, errors = run_command(
                "prepare",
                "--dataset=fashion_mnist",
                f"--data_dir={unfinished}",
                f"--from_dir={FASHION_MNIST_ARCHIVES}",
            )
            assert code == 0, errors
            unfinished.rename(directory)
    return str(directory)


def small():
    """The config of a small DResNet on digits that trains for a few steps."""
    config = digits.get_config()
    config.model.width = 4
    config.model.blocks_per_stage = (1, 1, 1, 1)
    config.train.num_steps = 12
    config.train.log_every_steps = 5
    config.train.checkpoint_every_steps = 4
    return config


@pytest.fixture
def small_config():
    """As `small`, for a test to change."""
    return small()


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
