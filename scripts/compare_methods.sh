#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
docs=12 contexts=1024,prose,2048,8192 ratios=4,8,16,32,64
out=$root/bench/results/$(date +%F)-compare model=$root/models/scribe.gguf
methods=self_study,sequential,unfitted,kvzip,h2o,snapkv,streaming,truncate,random
methods+=,kv:q8_0,kv:q4_0,kv:q8_0+self_study,kv:q4_0+self_study,kv:q8_0+kvzip
usage="usage: compare_methods.sh [--docs $docs] [--contexts $contexts] [--ratios $ratios]
                          [--methods LIST] [--out PREFIX] [--model FILE]
The recorded comparison of methods: recall, and prose, at equal real bytes (needs \`make build\`).
A context is the name of a file in models/recall, or prose. For each it writes PREFIX-CONTEXT.json (with
.items.jsonl and .html) and PREFIX-CONTEXT.md; seconds by the clock and of the CPU go to stderr. A context whose
.json is there is not measured again, and that is said: a run that was stopped goes on with the next one.
Paths are meant from where you stand. Without --out PREFIX is bench/results/DATE-compare in the repository.
LIST without --methods: $methods
BUILD=FOLDER in the environment: the build to measure (build/release)."
source "$root/scripts/options.sh"
read_options "docs contexts ratios methods out model" "$@"
from_caller out model
program=${BUILD:-$root/build/release}/shorthand
from_caller program
need_program "$program" build
need_folder_of "$out"
for context in ${contexts//,/ }; do
  if [ -e "$out-$context.json" ]; then
    echo "$context: $out-$context.json is there: not measured again (remove it, or give another --out)" >&2
    continue
  fi
  if [ "$context" = prose ]; then
    data=()
    for file in "$root"/models/prose/*.txt; do data+=(--prose "$file"); done
  else
    data=(--recall "$root/models/recall/$context.jsonl")
  fi
  TIMEFORMAT="$context: %R s, CPU %U s"
  time "$program" compact-eval -m "$model" "${data[@]}" --docs "$docs" --methods "$methods" \
    --ratios "$ratios" --json "$out-$context.json" --html "$out-$context.html" > "$out-$context.md"
done
