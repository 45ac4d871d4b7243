#!/usr/bin/env bash
# The service on this machine, on a Ray head of its own (cluster/local.sh with another RAY_STATE_DIR):
#
#   cluster/serve.sh up [FILE]   starts it (default services/configs/local.yaml), waits until it is ready, prints its URL
#   cluster/serve.sh url         where it is
#   cluster/serve.sh down        ends it, and nothing else
#
# REMEMBRANDT_HOME  folder of databases and of the service's own files (default .demo)
# SERVE_PORT        wished port (default 8000; a free one if it is taken)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=${REMEMBRANDT_HOME:-$root/.demo}
[[ $home = /* ]] || home=$PWD/$home
service=$home/service
export PATH=$root/.venv/bin:$PATH REMEMBRANDT_HOME=$home RAY_STATE_DIR=$service/ray
export REMEMBRANDT_CACHE=${REMEMBRANDT_CACHE:-$home/cache}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

fail() { echo "error: $*" >&2; exit 2; }
ready() { [ -s "$service/url" ] && python "$root/cluster/ready.py" "$(cat "$service/url")/readyz"; }

up() {
  if ready; then cat "$service/url"; return; fi
  local file=${1:-$root/services/configs/local.yaml} dashboard variables deadline
  [ -r "$file" ] || fail "cannot read $file"
  mkdir -p "$service"
  chmod 700 "$service"
  "$root/cluster/local.sh" up > /dev/null
  dashboard=$("$root/cluster/local.sh" status | sed -n 's/^dashboard //p')
  variables=$("$root/cluster/local.sh" env)
  eval "$variables"
  python - "$file" "$service/serve.yaml" "${SERVE_PORT:-8000}" > "$service/url" <<'PYTHON'
import socket, sys
import yaml
source, target, wished = sys.argv[1:]
values = yaml.safe_load(open(source, encoding="utf-8"))
with socket.socket() as taken:
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(("127.0.0.1", int(wished)))
    except OSError:
        taken.bind(("127.0.0.1", 0))
    port = taken.getsockname()[1]
values["http_options"] = {**values.get("http_options", {}), "host": "127.0.0.1", "port": port}
yaml.safe_dump(values, open(target, "w", encoding="utf-8"), sort_keys=False)
print(f"http://127.0.0.1:{port}")
PYTHON
  serve deploy --address "$dashboard" "$service/serve.yaml" > "$service/deploy.log" 2>&1 || {
    down
    fail "the service was not taken; $service/deploy.log ends: $(tail -n 2 "$service/deploy.log" | tr '\n' ' ')"
  }
  deadline=$((SECONDS + ${SERVE_TIMEOUT:-300}))
  until ready; do
    if [ $SECONDS -gt $deadline ] || serve status --address "$dashboard" 2> /dev/null | grep -q DEPLOY_FAILED; then
      serve status --address "$dashboard" > "$service/status.log" 2>&1 || true
      down
      fail "the service did not become ready: see $service/status.log"
    fi
    sleep 1
  done
  cat "$service/url"
}

down() {
  "$root/cluster/local.sh" down
  rm -f "$service/url"
}

case "${1:-}" in
  up) up "${2:-}" ;;
  url) ready || fail "no service runs: start it with cluster/serve.sh up"; cat "$service/url" ;;
  down) down ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
