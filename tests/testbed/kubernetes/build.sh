#!/usr/bin/env bash
# Build Kubernetes 1.20.2 from Debian's source package into the cache.
#
#   build.sh [kubelet|cluster|all]     default: kubelet
#
# kubelet: kubelet, kubectl and a static `pause`   (about 6 minutes on 2 cores, 1.4 GiB at the link)
# cluster: kube-apiserver, kube-controller-manager, kube-scheduler as well (3 minutes more)
#
# Prints one line a step. Finished binaries are never built again; delete the cache to build anew.
# Environment: GPUOPS_CACHE (default ~/.cache/gpuops).
set -euo pipefail

what=${1:-kubelet}
case $what in
  kubelet) targets=(kubelet kubectl pause) ;;
  cluster) targets=(kubectl kube-apiserver kube-controller-manager kube-scheduler) ;;
  all) targets=(kubelet kubectl pause kube-apiserver kube-controller-manager kube-scheduler) ;;
  *) echo "build.sh: unknown target '$what': say kubelet, cluster or all" >&2; exit 2 ;;
esac

cache=${GPUOPS_CACHE:-$HOME/.cache/gpuops}
work=$cache/kubernetes-src
bin=$cache/kubernetes-1.20.2/bin
log=$cache/kubernetes-build.log
mkdir -p "$work" "$bin"
exec 9>"$work/.lock"
flock 9

missing=()
for target in "${targets[@]}"; do [ -x "$bin/$target" ] || missing+=("$target"); done
if [ ${#missing[@]} -eq 0 ]; then
  echo "kubernetes: $bin holds ${targets[*]} already"
  exit 0
fi

step() { printf 'kubernetes: %s\n' "$*"; }
fail() {
  printf 'kubernetes: %s\nkubernetes: the last lines of %s:\n' "$1" "$log" >&2
  tail -n 15 "$log" >&2 || true
  exit 1
}

golang=/usr/lib/go-1.19/bin/go
if [ ! -x "$golang" ] || ! command -v dpkg-source >/dev/null; then
  step "installing Debian's golang-1.19-go and dpkg-dev (apt)"
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    golang-1.19-go dpkg-dev rsync gcc >"$log" 2>&1 || fail "apt-get install failed: is this Debian 12, and are you root?"
fi

tree=$work/gopath/src/k8s.io/kubernetes
if [ ! -e "$tree/.unpacked" ]; then
  step "fetching Debian's source package (25 MB)"
  # The machine's own apt settings with sources switched on, so that no mirror is named here.
  apt_dir=$work/apt
  mkdir -p "$apt_dir/lists/partial" "$apt_dir/sources"
  for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ -e "$file" ] || continue
    case $file in
      *.sources) sed 's/^Types:.*/Types: deb-src/' "$file" >"$apt_dir/sources/debian.sources" ;;
      *.list) sed -n 's/^deb /deb-src /p' "$file" >"$apt_dir/sources/debian.list" ;;
    esac
  done
  apt_options=(-o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$apt_dir/sources"
    -o "Dir::State::Lists=$apt_dir/lists" -o APT::Sandbox::User=root)
  apt-get "${apt_options[@]}" update >"$log" 2>&1 || fail "apt-get update for source packages failed"
  rm -rf "$work/src" "$tree"
  mkdir -p "$work/src" "$(dirname "$tree")"
  (cd "$work/src" && apt-get "${apt_options[@]}" source --download-only kubernetes) >>"$log" 2>&1 ||
    fail "apt-get source kubernetes failed"
  step "unpacking"
  (cd "$work/src" && dpkg-source --no-check -x ./kubernetes_*.dsc "$tree") >>"$log" 2>&1 ||
    fail "dpkg-source failed"
  touch "$tree/.unpacked"
fi

export GOPATH=$work/gopath GO111MODULE=off GOFLAGS="" GOCACHE=$work/gocache CGO_ENABLED=0
export GOTOOLCHAIN=local HOME="${HOME:-/root}"
base=k8s.io/kubernetes/vendor/k8s.io/component-base/version
ldflags="-s -w -X $base.gitVersion=v1.20.2 -X $base.gitMajor=1 -X $base.gitMinor=20 \
 -X $base.gitTreeState=archive -X $base.gitCommit=debian-1.20.5+really1.20.2 -X $base.buildDate=2021-01-13T00:00:00Z"
# /version is answered by the aggregator, which takes it from client-go.
ldflags="$ldflags ${ldflags//component-base\/version/client-go/pkg/version}"

for target in "${missing[@]}"; do
  started=$SECONDS
  case $target in
    pause)
      step "building pause"
      gcc -static -Os -o "$bin/pause.new" "$tree/build/pause/linux/pause.c" >>"$log" 2>&1 ||
        gcc -static -Os -o "$bin/pause.new" "$tree/build/pause/pause.c" >>"$log" 2>&1 || fail "pause failed"
      ;;
    kube-apiserver)
      step "generating the API server's OpenAPI definitions"
      (cd "$tree" && "$golang" build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen) >>"$log" 2>&1 ||
        fail "openapi-gen failed"
      if [ ! -s "$tree/pkg/generated/openapi/zz_generated.openapi.go" ]; then
        # Every package with the tag in any file: resource.Quantity and intstr have it on the type, not in doc.go,
        # and the API server exits at its start ("cannot find model definition") when one is missing.
        inputs=$(cd "$tree" && grep -rlE --include='*.go' '^\s*// ?\+k8s:openapi-gen=' pkg cmd plugin staging/src |
          grep -v -e '_test\.go$' -e /zz_generated -e /code-generator/ -e /sample- |
          xargs -n1 dirname | sed 's#^staging/src/#vendor/#' | sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
        (cd "$tree" && "$work/openapi-gen" --v=1 --logtostderr --input-dirs "$inputs" \
          --output-base "$work/gopath/src" \
          --output-package k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
          --go-header-file hack/boilerplate/boilerplate.generatego.txt \
          --report-filename /dev/null) >>"$log" 2>&1 || fail "openapi-gen run failed"
      fi
      step "building $target"
      (cd "$tree" && "$golang" build -ldflags "$ldflags" -o "$bin/$target.new" "./cmd/$target") >>"$log" 2>&1 ||
        fail "$target failed"
      ;;
    *)
      step "building $target"
      (cd "$tree" && "$golang" build -ldflags "$ldflags" -o "$bin/$target.new" "./cmd/$target") >>"$log" 2>&1 ||
        fail "$target failed"
      ;;
  esac
  mv "$bin/$target.new" "$bin/$target"
  step "$target done in $((SECONDS - started)) s"
done
