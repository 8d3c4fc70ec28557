#!/usr/bin/env bash
# Stands in for the Python of a TPU's worker. It notes its calls; `-m uv venv` makes another
# one like it; `-m dresnet_jax.train` trains by $FAKE_TRAIN.
set -euo pipefail
echo "$*" >>"$HOME/python_calls"
case ${*:1:3} in
  "-m uv venv")
    mkdir -p "${*: -1}/bin"
    cp "$0" "${*: -1}/bin/python"
    ;;
  "-m dresnet_jax.train"*) exec "$FAKE_TRAIN" "$@" ;;
esac
