#!/usr/bin/env bash
# `make demo`: pictures → a published, searchable database → contact sheets. What is there already is reused.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
demo=${DEMO_DIR:-.demo}
[[ $demo = /* ]] || demo=$root/$demo
export PATH=$root/.venv/bin:$PATH
export REMEMBRANDT_CACHE=${REMEMBRANDT_CACHE:-$demo/cache} RAY_STATE_DIR=$demo/ray OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
cd "$root"

database=$demo/databases/emoji
job=(jobs/build_index.py --config jobs/configs/build_index/emoji.yaml uri="$database" source.uri="$demo/data/emoji")

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS" >&2; }
# Nothing that the database is made of has changed since; if anything has, the job itself says whether it matters.
is_built() {
  [ -e "$database/current" ] || return 1
  [ -n "$(find "$demo/data/emoji/dataset.json" jobs libs -newer "$database/current" -not -name '*.pyc' -type f -print -quit)" ] || return 0
  python "${job[@]}" --dry-run --json 2> /dev/null | python -c 'import json, sys; sys.exit(not json.load(sys.stdin)["already_built"])'
}

step "Preparing the emoji drawings"
remembrandt datasets prepare emoji --out "$demo/data/emoji"

if is_built; then
  step "The database is there"
else
  step "Planning: what such a database needs, from rates measured here"
  remembrandt plan --rows 14000 --budget 1GB --image-bytes 8kB
  step "Starting Ray"
  trap 'cluster/local.sh down' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  cluster/local.sh up
  variables=$(cluster/local.sh env)
  eval "$variables"
  step "Building the database"
  ray job submit --working-dir . -- python "${job[@]}"
  cluster/local.sh down
  trap - EXIT
fi

report=$demo/sheets/report.txt
if [ "$report" -nt "$database/current" ]; then
  step "The sheets are there"
  cat "$report"
else
  step "Searching it"
  mkdir -p "$demo/sheets"
  { remembrandt db show "$database" && remembrandt demo-sheets "$database" --out "$demo/sheets"; } | tee "$report.part"
  mv "$report.part" "$report"
fi
step "Done"
