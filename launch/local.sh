#!/usr/bin/env bash
# Trains with N processes on this machine, over CPU devices or its GPUs.
#
#     launch/local.sh N [--devices=D | --gpus=G] [--grace=30] [--dry-run] -- TRAIN'S ARGUMENTS
#     launch/local.sh --status | --logs | --stop [--dry-run] --workdir=DIR
#
# for example
#
#     launch/local.sh 2 -- --config=configs/digits.py --workdir=runs/two
#
# Process 0 prints here. The output of process I is kept in WORKDIR.launch/process_I.log,
# run after run. Ctrl-C and SIGTERM are handed on to all processes. Once one ends with a
# code other than 0, the others are ended too; the exit code is the first such code.
#
#   --devices=D     fake CPU devices of each process (default: 1)
#   --gpus=G        GPUs of each process, instead of CPU devices
#   --grace=S       seconds from the first process's end to SIGKILL for the others
#                   (default: 30)
#   --log_dir=DIR   directory of the logs (default: WORKDIR.launch)
#   --workdir=DIR   for --status, --logs and --stop: the run's directory
#   --status        says which processes live
#   --logs          prints the logs of all processes
#   --stop          sends SIGTERM to all processes; they save, and end with code 75
#   --dry-run       prints what would run
#   --help          prints this
#
# PYTHON names the Python; else it is that of .venv, else python3.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

OPTION=([devices]="" [gpus]="" [grace]=30 [log_dir]="" [workdir]="")

# The directory of the logs, or the mistake that there is none.
find_log_dir() {
  local workdir=${OPTION[workdir]}
  [[ -n ${OPTION[log_dir]} ]] && return
  [[ $ACTION == start ]] && workdir=$(command_workdir)
  if [[ $ACTION == start ]]; then
    [[ -n $workdir ]] || fail "--workdir is missing after --: give the directory of the run."
  else
    [[ -n $workdir ]] || fail "--workdir is missing: give the directory of the run."
  fi
  [[ $workdir != *://* ]] ||
    fail "--workdir=$workdir is not on this machine: give --log_dir for the logs."
  OPTION[log_dir]=${workdir%/}.launch
}

# Whether the process of a pid file lives, and is not a stranger with the same number.
lives() {
  local pid mark line
  { read -r pid && read -r mark; } <"$1"
  line=$(ps -ww -o args= -p "$pid" 2>/dev/null) && [[ "$line " == *" $mark "* ]]
}

# Fills FILES with the pid files, in the order of the processes.
find_pid_files() {
  local found=("${OPTION[log_dir]}"/process_*.pid)
  [[ -e ${found[0]} ]] || fail "${OPTION[log_dir]} holds no run of local.sh."
  mapfile -t FILES < <(printf '%s\n' "${found[@]}" | sort -V)
}

status() {
  local file name
  for file in "${FILES[@]}"; do
    name=$(basename "$file" .pid)
    if lives "$file"; then
      echo "${name/_/ }: runs, pid $(head -n 1 "$file")"
    elif [[ -e ${file%.pid}.code ]]; then
      echo "${name/_/ }: ended with code $(<"${file%.pid}.code")"
    else
      echo "${name/_/ }: gone"
    fi
  done
}

logs() {
  local file
  for file in "${FILES[@]}"; do
    echo "==> ${file%.pid}.log <=="
    cat "${file%.pid}.log"
  done
}

stop() {
  local file
  for file in "${FILES[@]}"; do
    if lives "$file"; then
      run kill -TERM "$(head -n 1 "$file")"
    fi
  done
}

free_port() {
  "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# Fills LINE with the command of process $1.
process_line() {
  local i=$1 first
  LINE=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=${OPTION[devices]:-1}")
  if [[ -n ${OPTION[gpus]} ]]; then
    first=$((i * OPTION[gpus]))
    LINE=(env "CUDA_VISIBLE_DEVICES=$(seq -s, $first $((first + OPTION[gpus] - 1)))")
  fi
  LINE+=("$PYTHON" -m dresnet_jax.train "${COMMAND[@]}" "--coordinator=localhost:$PORT"
    "--num_processes=$N" "--process_id=$i")
}

# Sends a signal to all processes that still run.
signal_all() {
  local pid
  for pid in "${!ALIVE[@]}"; do
    kill "-$1" "$pid" 2>/dev/null || true
  done
}

start_process() {
  local i=$1 base=${OPTION[log_dir]}/process_$1
  process_line "$i"
  rm -f "$base.code"
  {
    echo
    echo "# $(date '+%Y-%m-%d %H:%M:%S'): $(quote "${LINE[@]}")"
  } >>"$base.log"
  if ((i == 0)); then
    # Signals are for the processes: their last words are still to be shown.
    exec {OUT}> >(trap '' INT TERM && exec tee -a "$base.log")
    OUT_TEE=$!
    exec {ERR}> >(trap '' INT TERM && exec tee -a "$base.log" >&2)
    ERR_TEE=$!
    "${LINE[@]}" </dev/null >&"$OUT" 2>&"$ERR" {OUT}>&- {ERR}>&- &
    exec {OUT}>&- {ERR}>&-
  else
    "${LINE[@]}" </dev/null >>"$base.log" 2>&1 &
  fi
  ALIVE[$!]=$i
  # What no other process has among its arguments.
  printf '%s\n' $! "--coordinator=localhost:$PORT --num_processes=$N --process_id=$i" \
    >"$base.pid"
}

# Notes the code of process $1, by its pid.
ended() {
  local pid=$1 code=$2 i=${ALIVE[$1]}
  unset "ALIVE[$pid]"
  echo "$code" >"${OPTION[log_dir]}/process_$i.code"
  ((code != 0 && FIRST_CODE == 0)) || return 0
  FIRST_CODE=$code
  DEADLINE=$((SECONDS + OPTION[grace]))
  echo "process $i ended with code $code: see ${OPTION[log_dir]}/process_$i.log" >&2
  # Where it was stopped, so are the others: a second signal would cut short their saving.
  ((code == 75 || code == 130)) || signal_all TERM
}

# Notes the codes of the processes that ended.
reap() {
  local pid code running
  running=" $(jobs -pr | tr '\n' ' ') "
  for pid in "${!ALIVE[@]}"; do
    [[ $running == *" $pid "* ]] && continue
    code=0
    wait "$pid" || code=$?
    ended "$pid" "$code"
  done
}

# Ends the processes that outlived the first one by the grace time, with their children.
end_late_ones() {
  local pid code
  for pid in "${!ALIVE[@]}"; do
    echo "process ${ALIVE[$pid]} did not end in ${OPTION[grace]} s: SIGKILL" >&2
    code=0
    { kill -KILL "-$pid" && wait "$pid"; } 2>/dev/null || code=$?
    ended "$pid" "$code"
  done
}

start() {
  local i never
  exec {never}<> <(:)
  declare -gA ALIVE=() # pid -> number of the process
  FIRST_CODE=0
  DEADLINE=
  # Each process becomes a group of its own: Ctrl-C reaches it once, through this script.
  set -m
  trap 'signal_all TERM' TERM
  trap 'signal_all INT' INT
  for ((i = 0; i < N; i++)); do
    start_process "$i"
  done
  while ((${#ALIVE[@]})); do
    # A pause within the shell, which so gets Ctrl-C itself.
    read -rt 0.2 -u "$never" || true
    reap
    if [[ -n $DEADLINE ]] && ((SECONDS >= DEADLINE)); then
      end_late_ones
    fi
  done
  wait "$OUT_TEE" "$ERR_TEE" || true # For the last lines of process 0.
  return "$FIRST_CODE"
}

check_start() {
  local i file
  ((${#WORDS[@]} == 1)) && [[ ${WORDS[0]} =~ ^[1-9][0-9]*$ ]] ||
    fail "Give the number of processes, a whole number from 1, such as launch/local.sh 2;" \
      "'${WORDS[*]}' is none."
  N=${WORDS[0]}
  for i in devices gpus grace; do is_number "$i"; done
  [[ -z ${OPTION[devices]} || -z ${OPTION[gpus]} ]] ||
    fail "--devices and --gpus: only one of them."
  [[ -z ${OPTION[workdir]} ]] ||
    fail "--workdir is the train command's: give it after --."
  needs_command
  find_log_dir
  find_python
  for file in "${OPTION[log_dir]}"/process_*.pid; do
    if [[ -e $file ]] && lives "$file"; then
      fail "Processes of ${OPTION[log_dir]} still run: see --status, or --stop them."
    fi
  done
  PORT=$(free_port)
}

parse "$@"
if [[ $ACTION != start ]]; then
  no_words
  find_log_dir
  find_pid_files
  "$ACTION"
  exit 0
fi
check_start
if ((DRY_RUN)); then
  for ((i = 0; i < N; i++)); do
    process_line "$i"
    quote "${LINE[@]}"
  done
  exit 0
fi
mkdir -p "${OPTION[log_dir]}" 2>/dev/null ||
  fail "--log_dir=${OPTION[log_dir]} cannot be written."
rm -f "${OPTION[log_dir]}"/process_*.pid
start
