#!/bin/sh
# Prints the resources for which a plugin has left an MPS control daemon or GPUs in compute mode EXCLUSIVE_PROCESS, and
# ends them: the daemon quits, the GPUs get the mode DEFAULT, the resource's directory goes.
# Arguments: MPS_ROOT list|end
set -u
root=$1 action=$2 failed=0
for file in "$root"/*/*/exclusive; do
  [ -e "$file" ] || continue
  directory=${file%/exclusive}
  echo "${directory#"$root"/}"
  [ "$action" = end ] || continue
  # Without clients (remove has looked) it ends at once; where it is dead already there is nobody to tell.
  echo quit | CUDA_MPS_PIPE_DIRECTORY=$directory/pipe CUDA_MPS_LOG_DIRECTORY=$directory/log \
    timeout 10 nvidia-cuda-mps-control >/dev/null 2>&1
  back=yes
  while read -r uuid; do
    said=$(timeout 30 nvidia-smi -i "$uuid" -c DEFAULT 2>&1) && continue
    echo "$uuid stays in compute mode EXCLUSIVE_PROCESS: $said; run \`nvidia-smi -i $uuid -c DEFAULT\`" >&2
    back=no failed=1
  done <"$file"
  [ "$back" = no ] || rm -rf "$directory"
done
if [ "$action" = end ] && [ "$failed" = 0 ] && [ -d "$root" ]; then
  [ ! -L "$root/shm" ] || rm -f "$root/shm" # ours is a link to /dev/shm
  find "$root" -depth -type d -empty -delete
fi
exit $failed
