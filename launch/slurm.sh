#!/usr/bin/env bash
# Trains on a Slurm cluster, on its GPUs or CPUs: submits launch/slurm.sbatch.
#
#     launch/slurm.sh [FLAGS] [--dry-run] -- TRAIN'S ARGUMENTS
#     launch/slurm.sh --status | --logs | --stop [--dry-run] --name=NAME | --job=ID
#
# for example
#
#     launch/slurm.sh --nodes=2 --gpus-per-node=8 --time=24:00:00 -- \
#         --config=configs/digits.py --workdir=/shared/runs/digits
#
# It prints the number of the job. The workdir must be seen by all nodes. A job that is
# pre-empted or comes to its time limit saves, is queued again and resumes.
#
#   --nodes=N            nodes (default: 1)
#   --tasks-per-node=N   processes on each node (default: its GPUs, else 1)
#   --gpus-per-node=N    GPUs of each node; each process drives one
#   --cpus-per-task=N    CPU cores of each process
#   --partition=NAME     partition
#   --account=NAME       account
#   --time=TIME          time limit, such as 24:00:00
#   --name=NAME          name of the job (default: dresnet)
#   --log_dir=DIR        directory of the logs, NAME-ID.log (default: .)
#   --job=ID             for --status, --logs and --stop: the job, instead of its name
#   --status             what Slurm reports of the job
#   --logs               prints the job's log; of several of that name, the newest
#   --stop               has the job save and end with code 75, not to be queued again
#   --dry-run            prints what would run
#   --help               prints this
#
# PYTHON names the Python, on all nodes; else it is that of .venv, else python3.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

OPTION=([nodes]=1 [tasks-per-node]="" [gpus-per-node]="" [cpus-per-task]="" [partition]=""
  [account]="" [time]="" [name]=dresnet [log_dir]=. [job]="")

submit() {
  local name line
  needs_command
  [[ -z ${OPTION[job]} ]] || fail "--job is for --status, --logs and --stop."
  for name in nodes tasks-per-node gpus-per-node cpus-per-task; do is_number "$name"; done
  needs_program sbatch "run this where Slurm is"
  find_python
  line=(env "PYTHON=$PYTHON" sbatch --parsable "--job-name=${OPTION[name]}" "--nodes=${OPTION[nodes]}"
    "--ntasks-per-node=${OPTION[tasks-per-node]:-${OPTION[gpus-per-node]:-1}}")
  for name in gpus-per-node cpus-per-task partition account time; do
    [[ -z ${OPTION[$name]} ]] || line+=("--$name=${OPTION[$name]}")
  done
  line+=("--output=${OPTION[log_dir]}/%x-%j.log" "$LAUNCH/slurm.sbatch"
    "${COMMAND[@]}")
  ((DRY_RUN)) || mkdir -p "${OPTION[log_dir]}" 2>/dev/null ||
    fail "--log_dir=${OPTION[log_dir]} cannot be written."
  run "${line[@]}"
}

status() {
  local which=(--me "--name=${OPTION[name]}")
  [[ -z ${OPTION[job]} ]] || which=("--jobs=${OPTION[job]}")
  needs_program squeue "run this where Slurm is"
  run squeue --states=all "${which[@]}" "--format=%i %j %T %M %D %R"
}

logs() {
  local pattern="${OPTION[name]}-*.log" newest
  [[ -z ${OPTION[job]} ]] || pattern="*-${OPTION[job]}.log"
  # find, since names may be anything; the newest is the last.
  newest=$(find "${OPTION[log_dir]}" -maxdepth 1 -name "$pattern" -printf '%T@ %p\n' \
    2>/dev/null | sort -n | tail -n 1 | cut -d ' ' -f 2- || true)
  [[ -n $newest ]] || fail "${OPTION[log_dir]} holds no log $pattern: see --log_dir."
  run cat "$newest"
}

# A waiting job is cancelled. Of a running one the processes get SIGTERM, and code 75 no
# longer queues it again.
stop() {
  local which=(--me "--name=${OPTION[name]}") found jobs job id state
  [[ -z ${OPTION[job]} ]] || which=("--jobs=${OPTION[job]}")
  needs_program squeue "run this where Slurm is"
  found=$(squeue --noheader --states=PENDING,RUNNING "${which[@]}" "--format=%i %T")
  [[ -n $found ]] || fail "No such job waits or runs."
  mapfile -t jobs <<<"$found"
  for job in "${jobs[@]}"; do
    read -r id state <<<"$job"
    if [[ $state == PENDING ]]; then
      run scancel "$id"
    else
      run scontrol update "JobId=$id" Requeue=0
      run scancel --signal=TERM "$id"
    fi
  done
}

parse "$@"
no_words
[[ -z ${OPTION[job]} || ${OPTION[job]} =~ ^[0-9]+$ ]] ||
  fail "--job=${OPTION[job]} must be the number of a job."
[[ ${OPTION[name]} =~ ^[A-Za-z0-9._-]+$ ]] ||
  fail "--name=${OPTION[name]} may hold letters, digits and . _ - only."
if [[ $ACTION == start ]]; then submit; else "$ACTION"; fi
