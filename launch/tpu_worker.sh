#!/usr/bin/env bash
# What tpu_vm.sh runs on each worker of a TPU: one training, apart from the ssh session.
#
#     tpu_worker.sh install                    Python and the packages, in ~/dresnet_jax.venv
#     tpu_worker.sh start -- TRAIN'S ARGUMENTS starts the training, if none runs
#     tpu_worker.sh running                    whether it runs: code 0 or 1
#     tpu_worker.sh status                     says whether it runs, or how it ended
#     tpu_worker.sh logs                       prints the log, start after start
#     tpu_worker.sh stop                       sends SIGTERM: it saves, and ends with code 75
#     tpu_worker.sh end                        does so, and sends SIGKILL a minute later
#
# Log, number of the process and exit code are in ~/dresnet_jax.launch.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

VENV=$HOME/dresnet_jax.venv
STATE=$HOME/dresnet_jax.launch

# TPU VMs come with older Pythons than the package takes; uv brings one.
install() {
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --seed --clear --python=3.11 "$VENV"
  "$VENV/bin/python" -m pip install --quiet -c "$ROOT/locks/py311.txt" \
    -r "$ROOT/requirements.txt" "jax[tpu]"
}

running() {
  local line
  [[ -e $STATE/pid ]] || return 1
  line=$(ps -ww -o args= -p "$(<"$STATE/pid")" 2>/dev/null) &&
    [[ $line == *" -m dresnet_jax.train "* ]]
}

start() {
  needs_command
  if running; then
    echo "$(hostname): runs already"
    return
  fi
  mkdir -p "$STATE"
  rm -f "$STATE/code"
  {
    echo
    echo "# $(date '+%Y-%m-%d %H:%M:%S'): $(quote "${COMMAND[@]}")"
  } >>"$STATE/log"
  cd "$ROOT"
  # A session of its own: the end of ssh does not end it.
  # shellcheck disable=SC2016  # The inner bash expands them.
  setsid bash -c '
    "$@" & echo $! >"$0/pid"
    code=0; wait $! || code=$?
    echo "$code" >"$0/code"' \
    "$STATE" "$VENV/bin/python" -m dresnet_jax.train "${COMMAND[@]}" \
    </dev/null >>"$STATE/log" 2>&1 &
  echo "$(hostname): started"
}

status() {
  if running; then
    echo "$(hostname): runs"
  elif [[ -e $STATE/code ]]; then
    echo "$(hostname): ended with code $(<"$STATE/code")"
  elif [[ -e $STATE/log ]]; then
    echo "$(hostname): gone"
  else
    echo "$(hostname): never started"
  fi
}

logs() {
  [[ -e $STATE/log ]] || fail "$(hostname) has no log."
  cat "$STATE/log"
}

stop() {
  if running; then kill -TERM "$(<"$STATE/pid")"; fi
}

end() {
  local i
  stop
  for ((i = 0; i < 60; i++)); do
    running || return 0
    sleep 1
  done
  kill -KILL "$(<"$STATE/pid")"
}

parse "$@"
case ${WORDS[*]} in
  install | start | running | status | logs | stop | end) "${WORDS[0]}" ;;
  *) fail "'${WORDS[*]}' is none of install, start, running, status, logs, stop and end." ;;
esac
