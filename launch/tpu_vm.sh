#!/usr/bin/env bash
# Trains on Cloud TPU VMs: gets them as a queued resource, installs, runs on all workers.
#
#     launch/tpu_vm.sh --name=NAME --zone=ZONE --type=TYPE [FLAGS] [--dry-run] -- TRAIN'S ARGUMENTS
#     launch/tpu_vm.sh --resume ...the same line
#     launch/tpu_vm.sh --status | --logs | --stop | --delete [--dry-run] --name=NAME --zone=ZONE
#
# for example
#
#     launch/tpu_vm.sh --name=digits --zone=us-west4-a --type=v5litepod-16 --spot -- \
#         --config=configs/digits.py --workdir=gs://my-bucket/digits
#
# What is committed here is what trains there. The workdir must be seen by all workers: a
# bucket. The training continues when this command has ended, and does not end the TPU.
#
#   --name=NAME      name of the queued resource and, for one slice, of the TPU
#   --zone=ZONE      zone
#   --project=NAME   project (default: gcloud's)
#   --type=TYPE      accelerator type of a slice, such as v5litepod-16, v5p-32 or v6e-8
#   --slices=N       slices (default: 1)
#   --spot           takes spot capacity, which may be pre-empted
#   --runtime=NAME   TPU software version (default: the one that fits the type)
#   --poll=S         seconds between two looks at the queue (default: 30)
#   --worker=I       for --logs: the worker, of the first slice (default: 0)
#   --resume         resumes: with a new TPU where the old one was pre-empted, suspended or
#                    failed; waits where it is queued; leaves alone what still trains
#   --status         state of the queued resource, and of the training on each worker
#   --logs           prints the log of a worker
#   --stop           has the training save and end with code 75; the TPU stays
#   --delete         deletes the TPU and the queued resource
#   --dry-run        prints what would run
#   --help           prints this

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

OPTION=([name]="" [zone]="" [project]="" [type]="" [slices]=1 [runtime]="" [poll]=30
  [worker]=0)
SWITCH=([spot]=0)
ACTIONS="logs status stop delete resume"

WHERE=() # The flags that name project and zone.
WORKER_SCRIPT=dresnet_jax/launch/tpu_worker.sh

queued_resources() {
  run gcloud compute tpus queued-resources "$@" "${WHERE[@]}"
}

# Runs a line of shell on all workers of all slices.
on_all() {
  queued_resources ssh "${OPTION[name]}" --node=all --worker=all "--command=$1"
}

# The state of a resource, as gcloud reports it; nothing where it does not exist.
state_of() {
  local kind=$1 name=$2 format=$3 answer errors
  # What it warns of, on standard error, is no part of the answer.
  errors=$(mktemp)
  if answer=$(gcloud compute tpus "$kind" describe "$name" "--format=value($format)" \
    "${WHERE[@]}" 2>"$errors"); then
    rm -f "$errors"
    echo "$answer"
    return
  fi
  answer=$(<"$errors")
  rm -f "$errors"
  if [[ $answer != *NOT_FOUND* && $answer != *"not found"* ]]; then
    echo "$answer" >&2
    exit 1
  fi
}

# The state of the queued resource, or PREEMPTED where one of its TPUs is.
state() {
  local found i
  found=$(state_of queued-resources "${OPTION[name]}" state.state)
  if [[ $found == ACTIVE ]]; then
    for ((i = 0; i < OPTION[slices]; i++)); do
      case $(state_of tpu-vm "$(node "$i")" state) in
        PREEMPTED | TERMINATED) found=PREEMPTED ;;
      esac
    done
  fi
  echo "$found"
}

# The name of a slice's TPU.
node() {
  if ((OPTION[slices] == 1)); then echo "${OPTION[name]}"; else echo "${OPTION[name]}-$1"; fi
}

create() {
  local line=(create "${OPTION[name]}" "--accelerator-type=${OPTION[type]}"
    "--runtime-version=${OPTION[runtime]}")
  if ((OPTION[slices] == 1)); then
    line+=("--node-id=${OPTION[name]}")
  else
    line+=("--node-count=${OPTION[slices]}" "--node-prefix=${OPTION[name]}")
  fi
  if ((SWITCH[spot])); then line+=(--spot); fi
  queued_resources "${line[@]}"
}

delete() {
  # --force deletes its TPUs too; --quiet does not ask.
  queued_resources delete "${OPTION[name]}" --force --quiet
}

wait_until_active() {
  local found last=
  if ((DRY_RUN)); then
    run gcloud compute tpus queued-resources describe "${OPTION[name]}" \
      "--format=value(state.state)" "${WHERE[@]}"
    return
  fi
  while true; do
    found=$(state)
    case $found in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | PREEMPTED | DELETING | "")
        echo "error: ${OPTION[name]} is ${found:-gone}: --resume tries again." >&2
        exit 1
        ;;
    esac
    [[ $found == "$last" ]] || echo "${OPTION[name]}: $found"
    last=$found
    sleep "${OPTION[poll]}"
  done
}

# Sends what is committed, installs, starts.
train() {
  local archive=dresnet_jax.tar.gz directory
  if ((DRY_RUN)); then
    directory=/tmp
  else
    directory=$(mktemp -d)
    # shellcheck disable=SC2064  # It is this directory that shall go.
    trap "rm -rf '$directory'" EXIT
    if [[ -n $(git -C "$ROOT" status --porcelain --untracked-files=no) ]]; then
      echo "warning: changes that are not committed stay here." >&2
    fi
  fi
  run git -C "$ROOT" archive --format=tar.gz "--output=$directory/$archive" HEAD
  queued_resources scp "$directory/$archive" "${OPTION[name]}:" --node=all --worker=all
  on_all "rm -rf dresnet_jax && mkdir dresnet_jax && tar -xzf $archive -C dresnet_jax && bash $WORKER_SCRIPT install"
  on_all "bash $WORKER_SCRIPT start -- $(quote "${COMMAND[@]}")"
}

start() {
  local found
  if ((!DRY_RUN)); then
    found=$(state)
    [[ -z $found ]] || fail "${OPTION[name]} exists and is $found: --resume continues with it," \
      "--delete deletes it."
  fi
  create
  wait_until_active
  train
}

resume() {
  local found
  if ((DRY_RUN)); then
    echo "# If it was pre-empted, suspended or failed; if it still trains, none of these:"
    delete
    create
  else
    found=$(state)
    while [[ $found == SUSPENDING || $found == DELETING ]]; do
      sleep "${OPTION[poll]}"
      found=$(state)
    done
    case $found in
      PREEMPTED | SUSPENDED | FAILED)
        delete
        create
        ;;
      "") create ;;
      ACTIVE)
        if on_all "bash $WORKER_SCRIPT running" 2>/dev/null; then
          echo "${OPTION[name]} trains."
          return
        fi
        # Where one worker's process ended, the others wait for it in vain.
        on_all "[ ! -e $WORKER_SCRIPT ] || bash $WORKER_SCRIPT end"
        ;;
    esac
  fi
  wait_until_active
  train
}

status() {
  local found
  if ((DRY_RUN)); then
    wait_until_active
  else
    found=$(state)
    echo "${OPTION[name]}: ${found:-does not exist}"
    [[ $found == ACTIVE ]] || return 0
  fi
  on_all "bash $WORKER_SCRIPT status"
}

logs() {
  queued_resources ssh "${OPTION[name]}" --node=0 "--worker=${OPTION[worker]}" \
    "--command=bash $WORKER_SCRIPT logs"
}

stop() {
  on_all "bash $WORKER_SCRIPT stop"
}

# The TPU software version that Google names for a type.
find_runtime() {
  case ${OPTION[type]} in
    v6e-*) OPTION[runtime]=v2-alpha-tpuv6e ;;
    v5p-*) OPTION[runtime]=v2-alpha-tpuv5 ;;
    v5litepod-*) OPTION[runtime]=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) OPTION[runtime]=tpu-ubuntu2204-base ;;
    *) fail "--type=${OPTION[type]} is not known here: give its TPU software version as --runtime." ;;
  esac
}

parse "$@"
no_words
needs_option name "give the name of the queued resource"
[[ ${OPTION[name]} =~ ^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$ ]] ||
  fail "--name=${OPTION[name]} must be of lower-case letters, digits and -, from a letter on."
needs_option zone "give the zone, such as us-west4-a"
WHERE=("--zone=${OPTION[zone]}")
[[ -z ${OPTION[project]} ]] || WHERE+=("--project=${OPTION[project]}")
is_number slices
is_number poll
[[ ${OPTION[worker]} =~ ^[0-9]+$ ]] || fail "--worker=${OPTION[worker]} must be a whole number."
if [[ $ACTION == start || $ACTION == resume ]]; then
  needs_option type "give the accelerator type, such as v5litepod-16"
  needs_command
  [[ -n ${OPTION[runtime]} ]] || find_runtime
fi
needs_program gcloud "see https://cloud.google.com/sdk/docs/install"
"$ACTION"
