#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The recorded comparison of methods: recall at 1024, 2048 and 8192 tokens, and prose, at equal real bytes.
# compare_methods.sh [--docs N] [--contexts LIST] [--ratios LIST] [--methods LIST] [--out PREFIX] [--model FILE]
# (needs `make build`). For every context (a recall file's name, or prose) writes PREFIX-CONTEXT.json (with
# .items.jsonl and .html) and PREFIX-CONTEXT.md; a context whose .json is there is not measured again, so that a run
# that was stopped goes on with the next one. Seconds of each context, by the clock and of the CPU, go to stderr.
set -euo pipefail
cd "$(dirname "$0")/.."
docs=12 contexts=1024,prose,2048,8192 ratios=4,8,16,32,64
out=bench/results/$(date +%F)-compare model=models/scribe.gguf
methods=self_study,sequential,unfitted,kvzip,h2o,snapkv,streaming,truncate,random
methods+=,kv:q8_0,kv:q4_0,kv:q8_0+self_study,kv:q4_0+self_study,kv:q8_0+kvzip
usage="usage: compare_methods.sh [--docs $docs] [--contexts $contexts] [--ratios $ratios]
                          [--methods LIST] [--out $out] [--model $model]"
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || { echo "$usage" >&2; exit 1; }
  case $1 in
    --docs) docs=$2 ;;
    --contexts) contexts=$2 ;;
    --ratios) ratios=$2 ;;
    --methods) methods=$2 ;;
    --out) out=$2 ;;
    --model) model=$2 ;;
    *) echo "$usage" >&2; exit 1 ;;
  esac
  shift 2
done
for context in ${contexts//,/ }; do
  [ -f "$out-$context.json" ] && continue
  if [ "$context" = prose ]; then
    data=()
    for file in models/prose/*.txt; do data+=(--prose "$file"); done
  else
    data=(--recall "models/recall/$context.jsonl")
  fi
  TIMEFORMAT="$context: %R s, CPU %U s"
  time build/release/shorthand compact-eval -m "$model" "${data[@]}" --docs "$docs" --methods "$methods" \
    --ratios "$ratios" --json "$out-$context.json" --html "$out-$context.html" > "$out-$context.md"
done
