#!/bin/sh
# Prints the containers that were made with a runtime, one `ENGINE NAME STATE` a line. Changes nothing. Names of pods'
# containers hold the pod's name.
# Arguments: RUNTIME_NAME RUNTIME_PATH
set -u
name=$1 path=$2
if command -v docker >/dev/null 2>&1; then
  for id in $(docker ps --all --quiet --no-trunc 2>/dev/null); do
    docker inspect --format '{{.HostConfig.Runtime}} docker {{.Name}} {{.State.Status}}' "$id" 2>/dev/null
  done | sed -n "s|^$name docker /|docker |p"
fi
if command -v ctr >/dev/null 2>&1; then
  for space in $(ctr --timeout 5s namespaces ls -q 2>/dev/null); do
    [ "$space" = moby ] && continue # docker's, counted above
    running=$(ctr -n "$space" --timeout 5s tasks ls 2>/dev/null | awk '$3 == "RUNNING" {print $1}')
    for id in $(ctr -n "$space" --timeout 5s containers ls -q 2>/dev/null); do
      # The runtime's options are a protobuf in base64 or a JSON object; the path is in either.
      info=$(ctr -n "$space" --timeout 5s containers info "$id" 2>/dev/null)
      options=$(printf '%s' "$info" | sed -n '/"Runtime": {/,/^ *},\{0,1\}$/p')
      value=$(printf '%s' "$options" | sed -n 's/.*"value": *"\([^"]*\)".*/\1/p' | head -n 1)
      if printf '%s' "$options" | grep -qF "$path" || printf '%s' "$value" | base64 -d 2>/dev/null | grep -qaF "$path"; then
        pod=$(printf '%s' "$info" | sed -n 's/.*"io.kubernetes.pod.name": *"\([^"]*\)".*/\1/p' | head -n 1)
        state=exited
        case " $(echo "$running" | tr '\n' ' ') " in *" $id "*) state=running ;; esac
        echo "containerd $space/${pod:+$pod/}$id $state"
      fi
    done
  done
fi
