"""Stands in for gcloud: a small cloud in the directory $FAKE_CLOUD, noting every call.

It takes the commands and flags that gcloud's reference lists for these commands, and no
others. `ssh` runs its command, and `scp` copies, for each worker in a home of its own.
What a queued resource goes through is in `states`, one a line; the last stays.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
WIDE = {"zone", "project", "quiet", "format"}
FLAGS = {
    "queued-resources create": {
        "accelerator-type", "runtime-version", "node-id", "node-count", "node-prefix",
        "spot",
    },
    "queued-resources describe": set(),
    "queued-resources delete": {"force", "async"},
    "queued-resources ssh": {"node", "worker", "command", "batch-size"},
    "queued-resources scp": {"node", "worker", "batch-size"},
    "tpu-vm describe": set(),
}  # fmt: skip
WORKERS = 2


def fail(message, code=1):
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(code)


def not_found(kind, name):
    fail(f"NOT_FOUND: Resource 'projects/p/locations/z/{kind}/{name}' was not found")


def state():
    states = (CLOUD / "states").read_text().split()
    if len(states) > 1:
        (CLOUD / "states").write_text("\n".join(states[1:]))
    return states[0]


def homes(flags, count):
    """The homes of the workers that --node and --worker name."""
    nodes = range(count) if flags["node"] == "all" else [int(flags["node"])]
    workers = range(WORKERS) if flags["worker"] == "all" else [int(flags["worker"])]
    for node in nodes:
        for worker in workers:
            home = CLOUD / f"node_{node}_worker_{worker}"
            home.mkdir(exist_ok=True)
            yield home


def main():
    with (CLOUD / "calls").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    if sys.argv[1:3] != ["compute", "tpus"]:
        fail("Invalid choice", 2)
    command = " ".join(sys.argv[3:5])
    words = [a for a in sys.argv[5:] if not a.startswith("--")]
    parts = [a[2:].partition("=") for a in sys.argv[5:] if a.startswith("--")]
    flags = {name: value for name, _, value in parts}
    if command not in FLAGS or set(flags) - FLAGS[command] - WIDE:
        fail(f"unrecognized arguments: {sys.argv[3:]}", 2)
    if flags.get("zone") != "us-west4-a":
        fail("Permission denied on 'locations/nowhere' (or it may not exist).")
    resource = CLOUD / "resource.json"
    verb = sys.argv[4]
    if verb != "create" and not resource.exists():
        not_found("queuedResources", words[0])
    if verb == "create":
        if resource.exists():
            fail("ALREADY_EXISTS")
        for home in CLOUD.glob("node_*"):
            shutil.rmtree(home)
        (CLOUD / "preempted").unlink(missing_ok=True)
        shutil.copy(CLOUD / "next_states", CLOUD / "states")
        resource.write_text(json.dumps(flags))
        return
    count = int(json.loads(resource.read_text()).get("node-count", 1))
    if command == "tpu-vm describe":
        known = ["digits"] if count == 1 else [f"digits-{i}" for i in range(count)]
        if words != [*words[:1]] or words[0] not in known:
            not_found("nodes", words[0])
        print("PREEMPTED" if (CLOUD / "preempted").exists() else "READY", flush=True)
        print("WARNING: an update is there.", file=sys.stderr)
    elif verb == "describe":
        assert flags["format"] == "value(state.state)"
        print(state(), flush=True)
        print("WARNING: an update is there.", file=sys.stderr)
    elif verb == "delete":
        if "force" not in flags or "quiet" not in flags:
            fail("it would ask, and delete no TPU")
        resource.unlink()
        # The machines go, with what runs on them.
        for pid in CLOUD.glob("node_*/dresnet_jax.launch/pid"):
            if not pid.with_name("code").exists():
                os.kill(int(pid.read_text()), signal.SIGKILL)
    elif verb == "scp":
        assert re.fullmatch(r"\w+:", words[1])
        for home in homes(flags, count):
            shutil.copy(words[0], home)
    else:
        tools = f"{CLOUD / 'tools'}{os.pathsep}{os.environ['PATH']}"
        codes = [
            subprocess.run(
                ["bash", "-c", flags["command"]],
                cwd=home,
                env=os.environ | {"HOME": str(home), "PATH": tools},
                stdin=subprocess.DEVNULL,
            ).returncode
            for home in homes(flags, count)
        ]
        sys.exit(max(codes))


main()
