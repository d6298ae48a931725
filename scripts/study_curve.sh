#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
docs=12 contexts=1024 out=$root/bench/results/$(date +%F)-study-curve model=$root/models/scribe.gguf
usage="usage: study_curve.sh [--docs $docs] [--contexts $contexts] [--out PREFIX] [--model FILE]
Answers and KL against how much a compaction asks: numbers of self-study conversations, and mixes of query sources
(needs \`make build\`). A context is the name of a file in models/recall. For each it writes PREFIX-CONTEXT.json (with
.items.jsonl), PREFIX-CONTEXT.md and PREFIX-CONTEXT.svg; a context whose .json is there is not measured again, only
drawn, and that is said.
Paths are meant from where you stand. Without --out PREFIX is bench/results/DATE-study-curve in the repository.
BUILD=FOLDER in the environment: the build to measure (build/release)."
source "$root/scripts/options.sh"
read_options "docs contexts out model" "$@"
from_caller out model
program=${BUILD:-$root/build/release}/shorthand
from_caller program
need_program "$program" build
need_folder_of "$out"
methods=self_study,self_study:queries=prefill,self_study:queries=repeat_prefill
for share in 0.1 0.25 0.5; do methods+=,self_study:queries=repeat_prefill:reread=$share; done
for n in 6 12 24 48 96 192 384; do methods+=,self_study:conversations=$n:coverage=0; done
methods+=,self_study:queries=self_study+repeat_prefill
for n in 6 12 24 48; do
  methods+=,self_study:queries=self_study+repeat_prefill:reread=0.25:conversations=$n:coverage=0
done
for context in ${contexts//,/ }; do
  if [ -e "$out-$context.json" ]; then
    echo "$context: $out-$context.json is there: not measured again (remove it, or give another --out)" >&2
  else
    "$program" compact-eval -m "$model" --recall "$root/models/recall/$context.jsonl" --docs "$docs" \
      --methods "$methods" --ratios 8,16 --json "$out-$context.json" > /dev/null
  fi
  python3 "$root/scripts/study_curve.py" "$out-$context.json" "$out-$context.svg" > "$out-$context.md"
  echo "$out-$context.md"
done
