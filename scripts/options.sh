# shellcheck shell=bash
# SPDX-License-Identifier: MIT
# What the scripts of this folder that take options have in common; to be sourced, after `usage` is set.

# Where the caller stands: paths that he gives are meant from there, also after a script goes to the repository.
caller=$PWD

# read_options "NAME ..." ARGUMENT...: `--some-name VALUE` sets some_name. --help prints $usage and ends with 0, an
# option that is not among the names, or one without a value, ends with 2.
read_options() {
  local names=" $1 " name
  shift
  while [ $# -gt 0 ]; do
    case $1 in -h | --help)
      echo "$usage"
      exit 0
      ;;
    esac
    name=${1#--}
    if ! [[ $1 =~ ^--[a-z-]+$ && $names = *" $name "* ]]; then
      wrong_usage "unknown argument '$1'"
    elif [ $# -lt 2 ]; then
      wrong_usage "$1 needs a value"
    fi
    printf -v "${name//-/_}" %s "$2"
    shift 2
  done
}

wrong_usage() {
  printf '%s: %s\n%s\n' "$(basename "$0")" "$1" "$usage" >&2
  exit 2
}

fail() {
  echo "$(basename "$0"): $1" >&2
  exit 1
}

# from_caller NAME...: makes the paths in these variables absolute.
from_caller() {
  local name
  for name in "$@"; do
    [[ ${!name} = /* ]] || printf -v "$name" %s "$caller/${!name}"
  done
}

# need_program FILE TARGET: ends where FILE is not built.
need_program() {
  [ -x "$1" ] || fail "$1 is not there: run \`make $2\`, or name the folder of another build with BUILD=FOLDER"
}

# need_folder_of FILE: ends where nothing could be written to FILE.
need_folder_of() {
  [ -d "$(dirname "$1")" ] || fail "the folder $(dirname "$1") is not there: make it first, or give another --out"
}
