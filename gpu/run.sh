#!/bin/sh
# Everything that a GPU has to say of milr, in under eight minutes: gpu/run.sh [OUT]
#
# Needs a python3 with torch >= 2.11 for CUDA and transformers >= 5.17, and no network. What else is missing there is
# taken from gpu/wheels, if that folder was filled before (gpu/wheels.sh). Results: OUT/results.json (gpu/ by default),
# for the table of docs/performance.md: python tools/performance.py.
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu}
mkdir -p "$out"
site=$(mktemp -d)
if ls gpu/wheels/*.whl >/dev/null 2>&1; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" gpu/wheels/*.whl
fi
export PYTHONPATH="$site:src" OUT="$out" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
status=0
# The engine's own tests: kernels and whole drafts against torch's calls, in graphs, in float32.
timeout 100 python3 -m pytest -q -p no:cacheprovider -p no:benchmark -W ignore tests/backbones/test_kernels.py || status=1
timeout 360 python3 gpu/bench.py || status=1
rm -rf "$site"
exit $status
