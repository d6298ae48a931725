#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
rounds=14
usage="usage: demo.sh [ROUNDS]
A conversation that outlives its cache: a document with facts, then the same six questions over and over ($rounds rounds)
in a cache of 512 rows (needs \`make build\`).
BUILD=FOLDER in the environment: the build to show (build/release)."
source "$root/scripts/options.sh"
if [[ $# -eq 1 && $1 =~ ^[1-9][0-9]{0,5}$ ]]; then
  rounds=$1
else
  read_options "" "$@"
fi
program=${BUILD:-$root/build/release}/shorthand
from_caller program
need_program "$program" build
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"
python3 - "$work" "$rounds" <<'PY'
import json, sys
folder, rounds = sys.argv[1], int(sys.argv[2])
with open("models/recall/512.jsonl", encoding="utf-8") as lines:
    document = json.loads(next(lines))
with open(folder + "/document.txt", "w", encoding="utf-8") as out:
    out.write(document["context"])
with open(folder + "/questions.txt", "w", encoding="utf-8") as out:
    for _ in range(rounds):
        for question in document["questions"]:
            out.write(question["q"] + "\n")
PY
"$program" chat -m models/scribe.gguf -sysf "$work/document.txt" -c 512 --temp 0 \
  --compact-threshold 0.9 --compact-ratio 4 --compact-method self_study < "$work/questions.txt"
