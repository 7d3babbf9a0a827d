#!/usr/bin/env bash
# All that a machine with a GPU is asked, in one unattended run of at most nine minutes: scripts/gpu_check.sh --help
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root:$root/scripts${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m gpu_check "$@"
