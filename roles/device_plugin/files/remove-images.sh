#!/bin/sh
# Prints the images of a repository that docker and containerd hold for the kubelet, and removes them.
# Arguments: REPOSITORY list|remove
set -u
repository=$1 action=$2
if command -v docker >/dev/null 2>&1; then
  for image in $(docker image ls --format '{{.Repository}}:{{.Tag}}' "$repository" 2>/dev/null); do
    # By force: the kubelet keeps the dead container of a deleted pod for a minute. A running one is no victim of it.
    [ "$action" = list ] || docker image rm --force "$image" >/dev/null || exit 1
    echo "docker $image"
  done
fi
if command -v ctr >/dev/null 2>&1; then
  # The kubelet's side of containerd names each image by its own digest too.
  images=$(ctr -n k8s.io --timeout 10s images ls 2>/dev/null | awk 'NR > 1 {print $1, $3}')
  digests=$(printf '%s\n' "$images" | awk -v name="$repository" '{
    at = index($1, name ":")
    if (at == 1 || (at > 1 && substr($1, at - 1, 1) == "/")) print $2 }' | sort -u)
  for digest in $digests; do
    for image in $(printf '%s\n' "$images" | awk -v digest="$digest" '$2 == digest {print $1}'); do
      [ "$action" = list ] || ctr -n k8s.io --timeout 60s images rm --sync "$image" >/dev/null || exit 1
      echo "containerd $image"
    done
  done
fi
exit 0
