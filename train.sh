#!/usr/bin/env bash
# Trains a model: sets up the environment on first use, then calls `flame-accel train`, which launches the run.
#
#   bash train.sh                                   the quickstart: about a minute and a half on two CPU cores
#   bash train.sh -h                                the common options; -h all shows every option
#   bash train.sh --job.config_file run.toml ...    a run of your own; flags override the file
#
# NGPU (processes on this machine), NNODE, NODE_RANK, MASTER_ADDR, MASTER_PORT and ACCELERATE_CONFIG (such as fsdp2)
# say how the run is launched: flame_accel/commands/train.py, docs/engines.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_environment.sh"
setup_train_environment
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m flame_accel train "$@"
