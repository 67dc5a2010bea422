#!/usr/bin/env bash
# Runs the default test suite on CPU, without a network; sets up the environment on first use.
#
#   bash test.sh                    everything that is not marked slow or gpu
#   bash test.sh tests/laws         arguments go to pytest
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_environment.sh"
setup_test_environment
cd "$ROOT"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=offline
export TOKENIZERS_PARALLELISM=false CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal "$@"
