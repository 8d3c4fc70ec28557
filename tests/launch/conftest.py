"""A real Slurm of one node, for the tests of slurm.sh."""

import os
import shutil
import socket
import subprocess

import pytest

from tests.launch.launchers import wait_until

DAEMONS = ("munged", "slurmctld", "slurmd")

# As root in a container: no systemd, no cgroups, and ports and files of its own. The
# node's name resolves anywhere, and it has room for two processes whatever the machine
# has. A job that is queued again waits until its credentials have expired.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A running Slurm; the settings by which its commands find it."""
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed (Debian: slurm-wlm, munge)")
    if os.getuid() != 0:
        pytest.skip("Slurm's daemons need root")
    directory = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (directory / name).mkdir()
    (directory / "munge.key").write_bytes(os.urandom(128))
    (directory / "munge.key").chmod(0o600)
    file = directory / "slurm.conf"
    file.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            directory=directory,
            controller_port=free_port(),
            node_port=free_port(),
        )
    )
    settings = {"SLURM_CONF": str(file)}
    commands = (
        ["munged", "--foreground", "--force", f"--socket={directory}/munge.socket",
         f"--key-file={directory}/munge.key", f"--pid-file={directory}/munged.pid",
         f"--log-file={directory}/munged.log", f"--seed-file={directory}/munge.seed"],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "localhost"],
    )  # fmt: skip
    processes = []

    def said():
        return "\n".join(p.read_text()[-2000:] for p in directory.glob("*.out"))

    def idle():
        assert all(p.poll() is None for p in processes), said()
        result = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
        )
        return result.stdout.strip() == "idle"

    try:
        for command in commands:
            with (directory / f"{command[0]}.out").open("w") as out:
                processes.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | settings,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        cwd=directory,
                    )
                )
            if command[0] == "munged":
                wait_until((directory / "munge.socket").exists)
        wait_until(idle)
        yield settings
    finally:
        subprocess.run(["scancel", "--me"], env=os.environ | settings, check=False)
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
