# shellcheck shell=bash
# What all launchers share: flags, help, mistakes in one line, dry runs. It is sourced.
#
# A launcher says which options it knows in OPTION, which switches in SWITCH and which
# actions in ACTIONS, then calls `parse "$@"`. Its header comment is its help.

if ((BASH_VERSINFO[0] < 5)); then
  echo "error: bash 5 or newer is needed; this is $BASH_VERSION." >&2
  exit 2
fi
set -euo pipefail
shopt -s inherit_errexit

LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$LAUNCH")

declare -A OPTION=() # --name=value: the values, first the defaults.
# shellcheck disable=SC2034  # is_known reads it by its name.
declare -A SWITCH=() # --name: 0 or 1.
ACTIONS="logs status stop"
ACTION=start
WORDS=()   # The words without dashes.
COMMAND=() # What follows --: the train command's own arguments.
DRY_RUN=0

# A mistake that a person can mend.
fail() {
  echo "error: $*" >&2
  exit 2
}

# The header comment of the launcher.
show_help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

parse() {
  local name
  while (($#)); do
    case $1 in
      --help | -h)
        show_help
        exit 0
        ;;
      --dry-run) DRY_RUN=1 ;;
      --)
        shift
        COMMAND=("$@")
        break
        ;;
      --*=*)
        name=${1#--}
        name=${name%%=*}
        is_known OPTION "$name" || unknown_flag "$name"
        [[ -n ${1#*=} ]] || fail "--$name needs a value."
        OPTION[$name]=${1#*=}
        ;;
      --*)
        name=${1#--}
        if [[ " $ACTIONS " == *" $name "* ]]; then
          [[ $ACTION == start ]] || fail "--$ACTION and --$name: only one of them."
          ACTION=$name
        elif is_known SWITCH "$name"; then
          # shellcheck disable=SC2034
          SWITCH[$name]=1
        elif is_known OPTION "$name"; then
          fail "--$name needs a value: --$name=..."
        else
          unknown_flag "$name"
        fi
        ;;
      -*) unknown_flag "${1#-}" ;;
      *) WORDS+=("$1") ;;
    esac
    shift
  done
}

# Whether OPTION or SWITCH holds a name.
is_known() {
  local -n table=$1
  [[ $2 =~ ^[a-z_-]+$ && -v table[$2] ]]
}

unknown_flag() {
  fail "--$1 is not a flag of $(basename "$0"): see --help. The train command's own" \
    "arguments follow --."
}

no_words() {
  ((${#WORDS[@]} == 0)) ||
    fail "'${WORDS[0]}' is not understood: give values as --name=value."
}

needs_command() {
  ((${#COMMAND[@]})) || fail "Nothing to train: give the train command's own arguments" \
    "after --, such as -- --config=configs/digits.py --workdir=runs/digits."
}

needs_option() {
  [[ -n ${OPTION[$1]} ]] || fail "--$1 is missing: $2."
}

# Checks that an option is empty or a whole number from 1.
is_number() {
  [[ -z ${OPTION[$1]} || ${OPTION[$1]} =~ ^[1-9][0-9]*$ ]] ||
    fail "--$1=${OPTION[$1]} must be a whole number from 1."
}

# Checks that a program can be run; a dry run needs none.
needs_program() {
  ((DRY_RUN)) || command -v "$1" >/dev/null || fail "$1 is not installed: $2."
}

# The Python that trains: $PYTHON, else that of .venv, else python3.
find_python() {
  if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$ROOT/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
  fi
  command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not there."
}

# The words as one line of shell that gives the same words again.
quote() {
  local word line=()
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=("$word")
    else
      line+=("${word@Q}")
    fi
  done
  echo "${line[*]}"
}

# Runs a command; in a dry run prints it instead.
run() {
  if ((DRY_RUN)); then
    quote "$@"
  else
    "$@"
  fi
}

# The value of the last --workdir among the train command's arguments.
command_workdir() {
  local i value=
  for ((i = 0; i < ${#COMMAND[@]}; i++)); do
    case ${COMMAND[i]} in
      --workdir=* | -workdir=*) value=${COMMAND[i]#*=} ;;
      --workdir | -workdir) value=${COMMAND[i + 1]:-} ;;
    esac
  done
  echo "$value"
}
