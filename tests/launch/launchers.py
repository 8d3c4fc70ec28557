"""The launchers as a person would run them, and a stand-in for the training."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.acceptance.small_run import last_json
from tests.conftest import ROOT, SMALL

LAUNCH = ROOT / "launch"
FAKE_TRAIN = Path(__file__).parent / "fake_train.py"

# A short training. All its tests have two processes of one CPU device, and so share
# compiled programs.
SHORT = (*SMALL, "--config.train.num_steps=10", "--json")

# What no shell, ssh or YAML may change.
AWKWARD = (
    "--a=two words",
    "--b=it's",
    '--c="quoted" \\ back',
    "--d=$HOME $(whoami) `id` $$",
    "--e=#; & | * ? ~ {x} %",
    "--f=(1, 1)",
)


def environment(*paths, **settings):
    """This process's environment, with directories before those of PATH."""
    path = os.pathsep.join([*map(str, paths), os.environ["PATH"]])
    own = {"PATH": path, "PYTHON": sys.executable}
    return os.environ | own | settings


def start_launcher(name, *arguments, env=None, cwd=ROOT):
    # `env`, since a shell's background job ignores Ctrl-C and hands that down.
    return subprocess.Popen(
        ["env", "--default-signal=INT", LAUNCH / name, *map(str, arguments)],
        cwd=cwd,
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_launcher(name, *arguments, env=None, cwd=ROOT, timeout=500):
    """Runs a launcher to its end: (exit code, standard output, standard error)."""
    process = start_launcher(name, *arguments, env=env, cwd=cwd)
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def fake_python(directory):
    """A Python that trains by fake_train.py, and else is the one of this test."""
    path = Path(directory) / "python"
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n'
        f'exec {sys.executable} {FAKE_TRAIN} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def assert_two_processes_trained(output):
    """Whether the output of SHORT is that of two processes that met."""
    result = re.search(
        r"^processes: (\d+).*, devices: (\d+), slices: (\d+)$", output, re.M
    )
    assert result, output
    assert result.groups() == ("2", "2", "1")
    assert last_json(output)["steps"] == 10


def assert_one_clear_line(result, part):
    code, output, errors = result
    assert code == 2, errors
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert part in errors


def wait_until(condition, seconds=60):
    """Waits until a condition holds, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return value


def plain_tools(directory, *names):
    """A PATH with bash's usual tools and nothing else, except for the names given."""
    directory = Path(directory)
    directory.mkdir(exist_ok=True)
    usual = "bash basename cat date dirname env find git grep head hostname id ls mkdir"
    more = "mktemp mv paste ps rm sed seq setsid sleep sort tail tar tee tr cut"
    (directory / "python3").symlink_to(Path(sys.executable).resolve())
    for name in (*usual.split(), *more.split(), *names):
        result = shutil.which(name)
        if result:
            (directory / name).symlink_to(result)
    return directory
