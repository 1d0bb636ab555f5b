#!/bin/sh
# Prints each of these packages that owns a configuration file of NVIDIA's runtime which is not as the package brought it.
# Changes nothing. Arguments: PACKAGE...
set -u
dpkg-query -W -f '${Conffiles}\n' "$@" 2>/dev/null | while read -r file sum _; do
  case $file in /etc/nvidia-container-runtime/*) ;; *) continue ;; esac
  if [ ! -f "$file" ] || [ "$(md5sum <"$file" | cut -d' ' -f1)" = "$sum" ]; then continue; fi
  dpkg-query -S "$file" | cut -d: -f1
done
