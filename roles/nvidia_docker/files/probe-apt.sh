#!/bin/sh
# Would apt take this repository with this key, and what does it hold? In a directory of its own: changes nothing.
# Environment: GPUOPS_KEY (armored), GPUOPS_SOURCE (text of the .sources file), GPUOPS_KEY_FILE. Arguments: PACKAGE...
# Prints available=PACKAGE=VERSION lines. Exit code 100: apt's own, with its reason on stderr.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial"
printf '%s' "$GPUOPS_KEY" >"$work/key.asc"
printf '%s' "$GPUOPS_SOURCE" | sed "s|$GPUOPS_KEY_FILE|$work/key.asc|" >"$work/probe.sources"
set -- "$work" "$@"
apt() {
  program=$1
  shift
  "$program" -q -o Dir::Etc::SourceList="$work/probe.sources" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Acquire::Retries=1 \
    -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15 -o Acquire::Languages=none "$@"
}
shift
apt apt-get update >"$work/log" 2>&1 || { grep -E '^(E|W|Err)' "$work/log" >&2; exit 100; }
# An unreachable or unsigned flat repository is a warning to older versions of apt.
if grep -qE '^(E:|Err:|W: (Failed|GPG error))' "$work/log"; then
  grep -E '^(E|W|Err)' "$work/log" >&2
  exit 100
fi
apt apt-cache madison "$@" 2>/dev/null | awk -F'|' '{gsub(/ /, ""); print "available=" $1 "=" $2}'
