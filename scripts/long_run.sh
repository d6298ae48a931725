#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# One conversation four times as long as its cache, for hours: 64K rows, 256K tokens.
# long_run.sh [--rows N] [--logical N] [--methods LIST] [--ratio R] [--threshold T] [--rebase 0|1] [--recall FILE]
#             [--rope-base B] [--model FILE] [--out PREFIX]
# Needs a build with -DSHORTHAND_BENCH=ON in $BUILD (build/release).
# What is read is the first document of FILE, then the texts of models/prose over and over. Every method (full: a
# cache that holds all) runs in a process of its own at niceness 15: PREFIX-METHOD.jsonl has its checkpoints (each
# half a cache; with a conversation of up to 32768 tokens also those of the full cache, and KL against it),
# PREFIX-METHOD.log how far it is, with the time of day. A method that has ended is not run again: a
# run that was stopped goes on with the method it was at, from that method's start. At the end PREFIX.jsonl has all
# checkpoints and PREFIX.svg the plot. A cache longer than the model's context (scribe: 8192) cannot be answered from,
# compacted or not; with --rope-base B the model is a copy whose RoPE base is B and whose context is N rows
# (stretch_rope.py). 0: the model as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
rows=65536 logical=262144 methods=streaming,self_study ratio=2 threshold=0.9 rebase=1 rope_base=8000000
recall=models/recall/512.jsonl model=models/scribe.gguf out=bench/results/$(date +%F)-long-run
usage="usage: long_run.sh [--rows $rows] [--logical $logical] [--methods $methods] [--ratio $ratio]
                   [--threshold $threshold] [--rebase $rebase] [--recall $recall] [--rope-base $rope_base]
                   [--model $model] [--out $out]"
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || { echo "$usage" >&2; exit 1; }
  case $1 in
    --rows) rows=$2 ;;
    --logical) logical=$2 ;;
    --methods) methods=$2 ;;
    --ratio) ratio=$2 ;;
    --threshold) threshold=$2 ;;
    --rebase) rebase=$2 ;;
    --recall) recall=$2 ;;
    --rope-base) rope_base=$2 ;;
    --model) model=$2 ;;
    --out) out=$2 ;;
    *) echo "$usage" >&2; exit 1 ;;
  esac
  shift 2
done
bench=${BUILD:-build/release}/bench/long_bench
[ -x "$bench" ] || { echo "error: $bench is not there: build with -DSHORTHAND_BENCH=ON" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
text=$work/text.txt
cat models/prose/*.txt > "$text"
if [ "$rope_base" != 0 ]; then
  python3 scripts/stretch_rope.py "$model" "$work/stretched.gguf" "$rope_base" "$rows"
  model=$work/stretched.gguf
fi
for method in ${methods//,/ }; do
  done_file=$out-$method.jsonl
  [ -f "$done_file" ] && continue
  echo "$(date +%T) $method: $rows rows, $logical tokens, ratio $ratio, threshold $threshold, rebase $rebase, rope base $rope_base" \
    | tee -a "$out-$method.log" >&2
  nice -n 15 "$bench" "$model" "$recall" "$text" "$method" "$rows" "$logical" "$ratio" "$threshold" "$rebase" \
    2> >(while IFS= read -r line; do echo "$(date +%T) $line"; done >> "$out-$method.log") \
    > "$done_file.part"
  mv "$done_file.part" "$done_file"
done
# Of a short run every process begins with the full cache, for the KL: once is enough.
for method in ${methods//,/ }; do cat "$out-$method.jsonl"; done |
  awk '{ point = substr($0, 1, index($0, "\"next_pos\"")) } !seen[point]++' > "$out.jsonl"
python3 scripts/plot_long.py "$out.jsonl" > "$out.svg"
echo "$out.svg" >&2
