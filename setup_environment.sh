# Sourced by train.sh and test.sh: sets PYTHON to an interpreter that has the packages, installing them into .venv if need be.
#
#   setup_environment MODULES REQUIREMENTS...
#     MODULES        names that must be importable, separated by spaces
#     REQUIREMENTS   arguments of `pip install` that provide them

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

has_modules() { # PYTHON MODULES
  "$1" - $2 <<'PY' 2>/dev/null
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
  local modules=$1 name
  shift
  for name in "$ROOT/.venv/bin/python" python python3; do
    if has_modules "$name" "$modules"; then
      PYTHON=$name
      return
    fi
  done
  PYTHON="$ROOT/.venv/bin/python"
  if [ ! -x "$PYTHON" ]; then
    name=$(find_python)
    echo "First use: making .venv and installing the requirements (minutes, once) ..." >&2
    "$name" -m venv "$ROOT/.venv"
  else
    echo "Installing what is missing in .venv ..." >&2
  fi
  "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@" >&2
}
