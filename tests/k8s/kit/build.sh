#!/usr/bin/env bash
# Builds a control plane of Kubernetes and the KubeRay operator from their Go modules into .cache/k8s, and puts the CRDs
# beside them. Go ≥ 1.26 is needed; the first time takes about six minutes of processor time, 5 GB, and a network.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../../.." && pwd)/.cache/k8s
kubernetes=v1.35.4
eck=github.com/elastic/cloud-on-k8s/v3@v3.5.0

command -v go > /dev/null || { echo "error: Go is missing; install Go 1.26 or newer" >&2; exit 2; }
mark=$(cat "$here"/{go.mod,go.sum,build.sh} | sha256sum | cut -d' ' -f1)
[ "$(cat "$cache/built" 2> /dev/null || true)" != "$mark" ] || exit 0

mkdir -p "$cache"/{bin,crds}
rm -f "$cache/built"
# Without -modcacherw nobody can remove the modules but `go clean`.
export GOFLAGS="-buildvcs=false -modcacherw -p=${K8S_BUILD_JOBS:-2}" CGO_ENABLED=0
export GOCACHE=$cache/go-build GOMODCACHE=$cache/mod
cd "$here"

# Without its version a control plane takes itself for v0.0.0, and clients refuse it.
IFS=. read -r major minor _ <<< "${kubernetes#v}"
version=()
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  version+=(-X "$package.gitVersion=$kubernetes" -X "$package.gitMajor=$major" -X "$package.gitMinor=$minor")
  version+=(-X "$package.gitTreeState=clean")
done
build() {
  echo "building $1" >&2
  go build -trimpath -ldflags "-s -w ${version[*]}" -o "$cache/bin/$1" "$2"
}
build etcd go.etcd.io/etcd/server/v3
build kuberay-operator github.com/ray-project/kuberay/ray-operator
build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
build kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
build kubectl k8s.io/kubernetes/cmd/kubectl

cp "$(go list -m -f '{{.Dir}}' github.com/ray-project/kuberay/ray-operator)"/config/crd/bases/*.yaml "$cache/crds/"
# Fetched, not kept in the repository: its licence is not ours to pass on.
folder=$(cd "$cache" && GOFLAGS="$GOFLAGS -mod=mod" go mod download -json "$eck" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
cp "$folder"/config/crds/v1/resources/elasticsearch.k8s.elastic.co_elasticsearches.yaml "$cache/crds/"
chmod -R u+w "$cache/crds"
echo "$mark" > "$cache/built"
