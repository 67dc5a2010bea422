# shellcheck shell=bash
# Sourced by train.sh and test.sh: sets PYTHON to an interpreter that has the packages, installing
# them into .venv if there is none.
#
#   setup_environment MODULES [REQUIREMENTS FILES...]
#     MODULES              names that must be importable, separated by spaces
#     REQUIREMENTS FILES   what provides them

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

has_modules() { # PYTHON MODULES
  # shellcheck disable=SC2086
  "$1" - $2 2>/dev/null <<'PY'
import sys
from importlib.util import find_spec
sys.exit(sys.version_info < (3, 10) or any(find_spec(name) is None for name in sys.argv[1:]))
PY
}

find_python() { # an interpreter that can make the environment
  local name
  for name in python3.11 python3.12 python3.13 python3.10 python3 python; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "Python 3.10 or newer (with venv) is needed and was not found on PATH." >&2
  return 1
}

setup_environment() {
  local modules=$1 name stamp
  shift
  stamp="$ROOT/.venv/installed.$(cat "$@" /dev/null | cksum | tr ' ' '-')"
  # our own environment counts as it is only for the requirements that it was made from
  if [ $# -eq 0 ] || [ -e "$stamp" ]; then
    PYTHON="$ROOT/.venv/bin/python"
    if has_modules "$PYTHON" "$modules"; then return; fi
  fi
  if [ ! -d "$ROOT/.venv" ]; then
    for name in python python3; do
      PYTHON=$name
      if has_modules "$PYTHON" "$modules"; then return; fi
    done
    name=$(find_python)
    echo "First use: making .venv and installing the requirements (minutes, once) ..." >&2
    "$name" -m venv "$ROOT/.venv"
  else
    echo "Installing the requirements into .venv ..." >&2
  fi
  PYTHON="$ROOT/.venv/bin/python"
  # DeepSpeed has no wheel; a pip of Python 3.10 would build it without the packages that takes
  PIP_USE_PEP517=1 "$PYTHON" -m pip install --quiet --disable-pip-version-check "${@/#/--requirement=}" >&2
  touch "$stamp"
}
