#!/usr/bin/env bash
# `make demo`: pictures → a published, searchable database → a model trained on it → contact sheets of what it finds and
# of what it paints → the service, which stays up (DEMO_SERVE=0: nothing does). What is there already is reused.
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

start_ray() {
  trap 'cluster/local.sh down' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  cluster/local.sh up
}
# In a shell of its own: what belongs to one cluster must not reach the next.
submit() (
  variables=$(cluster/local.sh env)
  eval "$variables"
  ray job submit --working-dir . -- python "$@"
)
stop_ray() {
  cluster/local.sh down
  trap - EXIT
}

step "Preparing the emoji drawings"
remembrandt datasets prepare emoji --out "$demo/data/emoji"

if is_built; then
  step "The database is there"
else
  step "Planning: what such a database needs, from rates measured here"
  remembrandt plan --rows 14000 --budget 1GB --image-bytes 8kB
  step "Starting Ray"
  start_ray
  step "Building the database"
  submit "${job[@]}"
  stop_ray
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
# The model that ships has seen no black line art. A minute of training on it shows the loss fall, and every part at work.
model=$demo/models/line-art
if [ -e "$model/remembrandt.json" ] && [ "$model/remembrandt.json" -nt "$database/current" ]; then
  step "The trained model is there"
else
  step "Starting Ray"
  start_ray
  step "Training the small RDM on line art for a minute, asking for neighbours as it goes"
  rm -rf "$demo/runs/line-art"
  only='{style: [openmoji-black], split: [train]}'
  submit jobs/train_rdm.py --config jobs/configs/train_rdm/small.yaml name=line-art \
    storage="$demo/runs" output="$model" cache="$demo/cache/latents" first_stage=first-stage-small \
    train_set.uri="$database" "train_set.where=$only" \
    neighbors.database.uri="$database" "neighbors.database.where=$only" neighbors.same=null \
    loop.init_from=rdm-small loop.steps=80 loop.log_every=10 loop.checkpoint_every=80 loop.sample_every=0 \
    loop.ema=0.95 loop.optimizer.learning_rate=2.0e-4 loop.optimizer.warmup=10
  stop_ray
fi

pictures=$demo/sheets/samples.txt
if [ "$pictures" -nt "$model/remembrandt.json" ]; then
  step "The samples are there"
  cat "$pictures"
else
  step "Painting from words, from classes, from nothing, and from other databases"
  remembrandt demo-samples rdm-small "$database" --tuned "$model" --out "$demo/sheets" | tee "$pictures.part"
  mv "$pictures.part" "$pictures"
fi
entities=$demo/sheets/samples-entities.png
if [ "$entities" -nt "$database/current" ]; then
  step "The entities are there"
else
  step "Drawing things that a cascade never saw, with references and without"
  remembrandt demo-entities re-imagen-tiny "$database" --out "$demo/sheets"
fi
if [ "${DEMO_SERVE:-1}" = 0 ]; then
  step "Done"
  exit
fi
step "Starting the service"
export REMEMBRANDT_HOME=$demo REMEMBRANDT_ACCOUNTS=sqlite:///$demo/service/accounts.db
url=$(cluster/serve.sh up)
key=$demo/service/key
remembrandt tenants list --json | grep -q '"name": "demo"' || (umask 077 && remembrandt tenants create demo > "$key")
python cluster/first_picture.py "$url" "$key" "$demo/sheets/first-picture.png"
step "Done: the page and the API are up; make demo-stop ends them"
cat <<TEXT
page   $url/#key=$(cat "$key")
key    $(cat "$key")
curl   curl -s $url/v1/images/generations -H "Authorization: Bearer \$(cat $key)" -H 'Content-Type: application/json' \\
         -d '{"prompt": "a red apple", "database": "emoji", "seed": 1}'
TEXT
