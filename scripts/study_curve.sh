#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Answers and KL against how much a compaction asks: numbers of self-study conversations, and mixes of query sources.
# study_curve.sh [--docs N] [--contexts LIST] [--out PREFIX] [--model FILE]  (needs `make build`)
# For every context writes PREFIX-CONTEXT.json (with .items.jsonl), PREFIX-CONTEXT.md and PREFIX-CONTEXT.svg;
# a context whose .json is there is not measured again.
set -euo pipefail
cd "$(dirname "$0")/.."
docs=12 contexts=1024 out=bench/results/$(date +%F)-study-curve model=models/scribe.gguf
usage="usage: study_curve.sh [--docs $docs] [--contexts $contexts] [--out $out] [--model $model]"
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || { echo "$usage" >&2; exit 1; }
  case $1 in
    --docs) docs=$2 ;;
    --contexts) contexts=$2 ;;
    --out) out=$2 ;;
    --model) model=$2 ;;
    *) echo "$usage" >&2; exit 1 ;;
  esac
  shift 2
done
methods=self_study,self_study:queries=prefill,self_study:queries=repeat_prefill
for share in 0.1 0.25 0.5; do methods+=,self_study:queries=repeat_prefill:reread=$share; done
for n in 6 12 24 48 96 192 384; do methods+=,self_study:conversations=$n:coverage=0; done
methods+=,self_study:queries=self_study+repeat_prefill
for n in 6 12 24 48; do
  methods+=,self_study:queries=self_study+repeat_prefill:reread=0.25:conversations=$n:coverage=0
done
for context in ${contexts//,/ }; do
  if [ ! -f "$out-$context.json" ]; then
    build/release/shorthand compact-eval -m "$model" --recall "models/recall/$context.jsonl" --docs "$docs" \
      --methods "$methods" --ratios 8,16 --json "$out-$context.json" > /dev/null
  fi
  python3 scripts/study_curve.py "$out-$context.json" "$out-$context.svg" > "$out-$context.md"
  echo "$out-$context.md"
done
