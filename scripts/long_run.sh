#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
rows=65536 logical=262144 methods=streaming,self_study ratio=2 threshold=0.9 rebase=1 rope_base=8000000
recall=$root/models/recall/512.jsonl model=$root/models/scribe.gguf out=$root/bench/results/$(date +%F)-long-run
usage="usage: long_run.sh [--rows $rows] [--logical $logical] [--methods $methods] [--ratio $ratio]
                   [--threshold $threshold] [--rebase $rebase] [--rope-base $rope_base]
                   [--recall FILE] [--model FILE] [--out PREFIX]
One conversation four times as long as its cache, for hours: 64K rows, 256K tokens (needs \`make bench\`).
What is read is the first document of FILE, then the texts of models/prose over and over. Every method (full: a
cache that holds all) runs in a process of its own at niceness 15: PREFIX-METHOD.jsonl has its checkpoints (each
half a cache; with a conversation of up to 32768 tokens also those of the full cache, and KL against it),
PREFIX-METHOD.log how far it is, with the time of day. A method that has ended is not run again, and that is said: a
run that was stopped goes on with the method it was at, from that method's start. At the end PREFIX.jsonl has all
checkpoints and PREFIX.svg the plot. A cache longer than the model's context (scribe: 8192) cannot be answered from,
compacted or not; with --rope-base B the model is a copy whose RoPE base is B and whose context is N rows
(stretch_rope.py). 0: the model as it is.
Paths are meant from where you stand. Without --out PREFIX is bench/results/DATE-long-run in the repository.
BUILD=FOLDER in the environment: the build to measure, made with -DSHORTHAND_BENCH=ON (build/bench)."
source "$root/scripts/options.sh"
read_options "rows logical methods ratio threshold rebase rope-base recall model out" "$@"
from_caller recall model out
bench=${BUILD:-$root/build/bench}/bench/long_bench
from_caller bench
need_program "$bench" bench
need_folder_of "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
text=$work/text.txt
cat "$root"/models/prose/*.txt > "$text"
if [ "$rope_base" != 0 ]; then
  python3 "$root/scripts/stretch_rope.py" "$model" "$work/stretched.gguf" "$rope_base" "$rows"
  model=$work/stretched.gguf
fi
for method in ${methods//,/ }; do
  done_file=$out-$method.jsonl
  if [ -e "$done_file" ]; then
    echo "$method: $done_file is there: not run again (remove it, or give another --out)" >&2
    continue
  fi
  echo "$(date +%T) $method: $rows rows, $logical tokens, ratio $ratio, threshold $threshold, rebase $rebase," \
    "rope base $rope_base" | tee -a "$out-$method.log" >&2
  nice -n 15 "$bench" "$model" "$recall" "$text" "$method" "$rows" "$logical" "$ratio" "$threshold" "$rebase" \
    2> >(while IFS= read -r line; do echo "$(date +%T) $line"; done >> "$out-$method.log") \
    > "$done_file.part" || fail "$method ended with an error; $out-$method.log ends with it"
  mv "$done_file.part" "$done_file"
done
# Of a short run every process begins with the full cache, for the KL: once is enough.
for method in ${methods//,/ }; do cat "$out-$method.jsonl"; done |
  awk '{ point = substr($0, 1, index($0, "\"next_pos\"")) } !seen[point]++' > "$out.jsonl"
python3 "$root/scripts/plot_long.py" "$out.jsonl" > "$out.svg"
echo "$out.svg" >&2
