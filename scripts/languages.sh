#!/usr/bin/env bash
# Installs the languages that tests run programs in and that are quickly there, where root may do so by apt; elsewhere
# the tests of those that are missing skip.
set -euo pipefail
missing=()
for program in gcc g++ make perl lua5.4 ruby; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} = 0 ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi
export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null; then
  printf 'not installed: %s\nhint: their tests are skipped\n' "${missing[*]}" >&2
fi
