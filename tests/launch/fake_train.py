"""Stands in for the training: `fake_train.py -m dresnet_jax.train ARGUMENTS`.

The first start writes its arguments and waits until SIGTERM or Ctrl-C, then saves and
ends with the codes of the real one. A start that finds something saved ends with 0.

    --workdir=DIR     where it writes what it was given, and saves
    --die=I:CODE      process I, or `all`, ends with that code instead of waiting
    --deaf=I          process I ignores SIGTERM
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

assert sys.argv[1:3] == ["-m", "dresnet_jax.train"], sys.argv
ARGUMENTS = sys.argv[3:]
GIVEN = dict(a.removeprefix("--").split("=", 1) for a in ARGUMENTS if "=" in a)
RANK = int(GIVEN.get("process_id", os.environ.get("SLURM_PROCID", "0")))
WORKDIR = Path(GIVEN["workdir"])


def stop(number, _):
    print(f"signal {number}", flush=True)
    if RANK == 0:
        (WORKDIR / "saved").touch()
    sys.exit(75 if number == signal.SIGTERM else 130)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
WORKDIR.mkdir(parents=True, exist_ok=True)
die_rank, _, die_code = GIVEN.get("die", "").partition(":")
if GIVEN.get("deaf") == str(RANK):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
keys = ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES")
record = {"arguments": ARGUMENTS, "env": {k: os.environ.get(k) for k in keys}}
saved = (WORKDIR / "saved").exists()
# Whole or not at all, since the tests wait for it.
partial = WORKDIR / f"process_{RANK}.partial"
partial.write_text(json.dumps(record | {"pid": os.getpid()}))
partial.replace(WORKDIR / f"process_{RANK}.json")
if saved:
    print("went on", flush=True)
    sys.exit(0)
print("waits", flush=True)
print("a warning", file=sys.stderr, flush=True)
if die_rank in (str(RANK), "all"):
    time.sleep(0.5)
    sys.exit(int(die_code))
time.sleep(600)
