#!/usr/bin/env bash
# The tests that need a GPU, and nothing else: under 4 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m pytest -p no:cacheprovider -q -m cuda tests/e2e/test_launch_cuda.py "$@"
