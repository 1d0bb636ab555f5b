#!/bin/sh
# What systemd and the kernel say of the host service: UNIT, and the directory of its releases. Prints
#   reload=yes    when the unit's file is newer than what systemd has read
#   release=NAME  of the process that runs: its libraries are mapped from there, wherever `current` points to by now
unit=$1 releases=$2
echo "reload=$(systemctl show "$unit" --property=NeedDaemonReload --value)"
pid=$(systemctl show "$unit" --property=MainPID --value)
if [ "${pid:-0}" -gt 0 ]; then
  echo "release=$(awk -v at="$releases/" '
    (start = index($0, at)) { split(substr($0, start + length(at)), part, "/"); print part[1]; exit }' "/proc/$pid/maps")"
fi
