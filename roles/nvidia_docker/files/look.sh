#!/bin/sh
# Prints what the role has to know of a node, one key=value a line. Changes nothing.
# Arguments: LINKS_SCRIPT LINKS_RULE PACKAGE...
set -u
links_script=$1 links_rule=$2
shift 2
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

sum() { [ -f "$1" ] && sha1sum "$1" | cut -d' ' -f1; }

# shellcheck source=/dev/null
(. /etc/os-release 2>/dev/null; echo "os_id=${ID:-}"; echo "os_version=${VERSION_ID:-}"; echo "os_name=${PRETTY_NAME:-}")
echo "architecture=$(uname -m)"

engines=
for pair in docker:dockerd containerd:containerd crio:crio; do
  command -v "${pair#*:}" >/dev/null 2>&1 && engines="$engines ${pair%%:*}"
done
echo "engines=$engines"
gpus=0
for device in /sys/bus/pci/devices/*; do
  if [ ! -r "$device/vendor" ] || [ ! -r "$device/class" ]; then continue; fi
  read -r vendor <"$device/vendor"
  read -r class <"$device/class"
  case "$vendor $class" in "0x10de 0x0300"* | "0x10de 0x0302"*) gpus=$((gpus + 1)) ;; esac
done
echo "gpus=$gpus"
driver=
[ -r /proc/driver/nvidia/version ] && driver=$(grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' /proc/driver/nvidia/version | head -n 1)
echo "driver=$driver"

if command -v dpkg-query >/dev/null 2>&1; then
  echo "packages=$(dpkg-query -W -f '${db:Status-Status} ${Package}=${Version}\n' "$@" 2>/dev/null |
    sed -n 's/^installed //p' | tr '\n' ' ')"
  echo "held=$(dpkg --get-selections "$@" 2>/dev/null | awk '$2 == "hold" {sub(/:.*/, "", $1); print $1}' | tr '\n' ' ')"
elif command -v rpm >/dev/null 2>&1; then
  echo "packages=$(rpm -q --qf '%{NAME}=%{VERSION}-%{RELEASE}\n' "$@" 2>/dev/null | grep '=' | tr '\n' ' ')"
  locks=$(cat /etc/yum/pluginconf.d/versionlock.list /etc/dnf/plugins/versionlock.list /etc/dnf/versionlock.toml /etc/zypp/locks 2>/dev/null)
  held=
  for package in "$@"; do
    # A version begins with a number: nvidia-container-toolkit-base is no lock of nvidia-container-toolkit.
    printf '%s\n' "$locks" | grep -qE "(^|[\"[:space:]:])$package(-[0-9]|[\"[:space:]]|\$)" && held="$held $package"
  done
  echo "held=$held"
fi

key_file=''
source_file=''
for pair in /etc/apt/keyrings/nvidia-container-toolkit.asc:/etc/apt/sources.list.d/nvidia-container-toolkit.sources \
  /etc/pki/rpm-gpg/RPM-GPG-KEY-nvidia-container-toolkit:/etc/zypp/repos.d/nvidia-container-toolkit.repo \
  /etc/pki/rpm-gpg/RPM-GPG-KEY-nvidia-container-toolkit:/etc/yum.repos.d/nvidia-container-toolkit.repo; do
  [ -f "${pair%%:*}" ] && key_file=${pair%%:*}
  [ -f "${pair#*:}" ] && source_file=${pair#*:}
done
[ -f "$key_file" ] && echo "key=$(base64 -w0 <"$key_file")"
echo "source_sha1=$(sum "$source_file")"
old=
pattern='nvidia\.github\.io/(libnvidia-container|nvidia-docker|nvidia-container-runtime)'
for file in /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources /etc/yum.repos.d/*.repo /etc/zypp/repos.d/*.repo; do
  if [ ! -f "$file" ] || [ "$file" = "$source_file" ]; then continue; fi
  # Only files that name nothing but NVIDIA's addresses: one that serves other packages too is the administrator's.
  addresses=$(grep -E '^[[:space:]]*(deb |deb-src |URIs:|baseurl)' "$file") || continue
  printf '%s\n' "$addresses" | grep -qvE "$pattern" && continue
  old="$old $file"
done
echo "old_sources=${old# }"

echo "links_script_sha1=$(sum "$links_script")"
echo "links_rule_sha1=$(sum "$links_rule")"
missing=0
for node in /dev/nvidia[0-9]* /dev/nvidiactl /dev/nvidia-modeset /dev/nvidia-uvm /dev/nvidia-uvm-tools /dev/nvidia-caps/*; do
  [ -c "$node" ] || continue
  link=/dev/char/$(printf '%d:%d' "0x$(stat -c %t "$node")" "0x$(stat -c %T "$node")")
  [ -e "$link" ] || missing=$((missing + 1))
done
echo "links_missing=$missing"

# As in vars/main.yml: the specification for CDI, and what ours was made for.
cdi=none
[ -e /etc/cdi/nvidia.yaml ] && cdi=theirs
[ $cdi = theirs ] && [ -f /var/lib/gpuops/cdi-made-for ] && cdi=ours
echo "cdi=$cdi"
[ $cdi = ours ] && echo "cdi_made_for=$(cat /var/lib/gpuops/cdi-made-for)"

# What NVIDIA's runtime accepts: root keys, before the first table; its defaults where there is no line.
accepts() {
  value=$(sed -nE '/^[[:space:]]*\[/q; s/^[[:space:]]*"?'"$1"'"?[[:space:]]*=[[:space:]]*(true|false).*/\1/p' \
    /etc/nvidia-container-runtime/config.toml 2>/dev/null | head -n 1)
  echo "${value:-$2}"
}
echo "accepts_variable=$(accepts accept-nvidia-visible-devices-envvar-when-unprivileged true)"
echo "accepts_mounts=$(accepts accept-nvidia-visible-devices-as-volume-mounts false)"
