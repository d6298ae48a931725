#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# A conversation that outlives its cache: a document with facts, then the same six questions over and over in a cache of 512 rows.
# demo.sh [ROUNDS]  (needs `make build`)
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-14}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
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
build/release/shorthand chat -m models/scribe.gguf -sysf "$work/document.txt" -c 512 --temp 0 \
  --compact-threshold 0.9 --compact-ratio 4 --compact-method self_study < "$work/questions.txt"
