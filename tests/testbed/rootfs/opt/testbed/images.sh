#!/bin/sh
# Loads the inner images where they are missing, and starts the container that must survive everything.
set -eu
engine=$1
for archive in /opt/testbed/images/*.tar; do
  case $engine in
    docker) docker load -q -i "$archive" ;;
    containerd) ctr -n k8s.io images import "$archive" ;;
  esac
done
if [ "$engine" = docker ] && [ -z "$(docker ps -aq --filter name=^training$)" ]; then
  docker run -d --name training --network none gpuops/workload:1 sleep 1000000
fi
if [ "$engine" = containerd ] && ! ctr -n k8s.io containers info training >/dev/null 2>&1; then
  ctr -n k8s.io run --detach docker.io/gpuops/workload:1 training sleep 1000000
fi
