# shellcheck shell=bash
# Sourced by train.sh and test.sh: sets PYTHON to an interpreter that has the packages. If no environment has them, they
# are installed into .venv, and so is this checkout (editable), so that `import flame_accel` works in any folder.
#
#   setup_environment MODULES [REQUIREMENTS FILES...]
#     MODULES              names that must be importable, separated by spaces
#     REQUIREMENTS FILES   what provides them
#   setup_train_environment, setup_test_environment
#                          the same with what training, or the tests and checks, need

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
TRAIN_MODULES="torch accelerate fla transformers datasets evaluate wandb tensorboard yaml"
TEST_MODULES="$TRAIN_MODULES pytest xdist hypothesis deepspeed torchao lm_eval wonderwords ruff pyright material"

has_modules() { # PYTHON MODULES
  # shellcheck disable=SC2086
  "$1" - $2 2>/dev/null <<'PY'
import sys
from importlib.util import find_spec
sys.exit(sys.version_info < (3, 10) or any(find_spec(name) is None for name in sys.argv[1:]))
PY
}

make_environment() { # makes .venv with the first Python that can
  local name
  for name in python3.11 python3.12 python3.13 python3.10 python3 python; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      "$name" -m venv "$ROOT/.venv"
      return
    fi
  done
  if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --python '>=3.10' "$ROOT/.venv"
    return
  fi
  echo "Python 3.10 or newer with its venv module is needed and was not found on PATH (nor was uv)." >&2
  return 1
}

install_packages() { # ARGUMENTS of pip install; an environment that uv made has no pip
  # DeepSpeed has no wheel; a pip of Python 3.10 would build it without the packages that takes
  local -x PIP_USE_PEP517=1 PIP_DISABLE_PIP_VERSION_CHECK=1
  if "$PYTHON" -m pip --version >/dev/null 2>&1; then
    "$PYTHON" -m pip install --quiet "$@" >&2
  elif command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$PYTHON" "$@" >&2
  elif "$PYTHON" -m ensurepip >/dev/null 2>&1; then
    "$PYTHON" -m pip install --quiet "$@" >&2
  else
    echo "$ROOT/.venv has no pip, and uv is not on PATH. Install uv (https://docs.astral.sh/uv), then run" >&2
    echo "  uv pip install --python $PYTHON $*" >&2
    return 1
  fi
}

setup_environment() {
  local modules=$1 name stamp
  shift
  stamp="$ROOT/.venv/installed.$(cat "$@" "$ROOT/pyproject.toml" | cksum | tr ' ' '-')"
  # our own environment counts as it is only for the requirements that it was made from
  if [ $# -eq 0 ] || [ -e "$stamp" ]; then
    PYTHON="$ROOT/.venv/bin/python"
    if has_modules "$PYTHON" "$modules"; then return; fi
  fi
  # a folder without an interpreter: making it was interrupted
  if [ ! -e "$ROOT/.venv/bin/python" ]; then
    for name in python python3; do
      PYTHON=$name
      if has_modules "$PYTHON" "$modules"; then return; fi
    done
    echo "First use: making .venv and installing the requirements (minutes, once) ..." >&2
    make_environment
  else
    echo "Installing the requirements into .venv ..." >&2
  fi
  PYTHON="$ROOT/.venv/bin/python"
  install_packages "${@/#/--requirement=}"
  # where .venv is a link, other checkouts may share the environment: it keeps the package that it has
  [ -L "$ROOT/.venv" ] || install_packages --no-deps --no-build-isolation --editable "$ROOT"
  touch "$stamp"
}

setup_train_environment() {
  setup_environment "$TRAIN_MODULES" "$ROOT/requirements.txt"
}

setup_test_environment() {
  setup_environment "$TEST_MODULES" "$ROOT/requirements.txt" "$ROOT/requirements-engines.txt" \
    "$ROOT/requirements-test.txt"
}
