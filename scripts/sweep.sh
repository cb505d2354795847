#!/usr/bin/env bash
# Train one attempt of the study at all batches with SGD and LARS:
# scripts/sweep.sh attempt2 [key=value ...]. Arguments after the attempt are passed to train.py,
# such as seed=0,1,2 or model=resnet50_imagenet_stem.
set -euo pipefail
if [[ $# -eq 0 || $1 == -* || $1 == *=* ]]; then
    echo "error: the attempt is missing: type scripts/sweep.sh attempt1 [key=value ...]" >&2
    exit 2
fi
attempt=$1
shift
exec "${PYTHON:-python}" "$(dirname "$0")/../train.py" -m "+experiment=$attempt" \
    batch=128,256,512,1024,2048,4096,8192 optimizer=sgd,lars "$@"
