#!/bin/sh
# Fills gpu/wheels with what a bare machine may lack, for Python 3.12 on x86-64: a transformers whose image mode works, and
# what the command line needs.
set -eu
cd "$(dirname "$0")/.."
exec python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d gpu/wheels \
  transformers==5.23.0 typer rich shellingham pydantic pydantic-core annotated-types typing-inspection annotated-doc
