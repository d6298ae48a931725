#!/bin/bash
# SPDX-License-Identifier: MIT
# fuzz_smoke.sh SECONDS: runs every built fuzzer for that long, one line each; fails on a finding.
# Build first: cmake --preset fuzz && cmake --build --preset fuzz
set -u
seconds=${1:?usage: fuzz_smoke.sh SECONDS}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n_fuzzers=0
failed=0
for fuzzer in "$root"/build/fuzz/fuzz/*_fuzz; do
  [ -x "$fuzzer" ] || continue
  n_fuzzers=$((n_fuzzers + 1))
  name=$(basename "$fuzzer" _fuzz)
  mkdir -p "$work/$name/corpus" "$work/$name/findings"
  # Seeds stay as they are: libFuzzer writes what it finds into the copy.
  cp "$root/fuzz/corpus/$name/"* "$work/$name/corpus/" 2>/dev/null
  (cd "$work/$name" && "$fuzzer" corpus -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix=findings/ >log 2>&1)
  code=$?
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$name/log")
  findings=$(find "$work/$name/findings" -type f | wc -l)
  echo "${name}_fuzz: ${runs:-0} executions, $seconds s, $findings findings"
  if [ "$code" -ne 0 ] || [ "$findings" -ne 0 ]; then
    failed=1
    tail -n 40 "$work/$name/log"
    mkdir -p "$root/build/fuzz/findings"
    cp "$work/$name/findings/"* "$root/build/fuzz/findings/" 2>/dev/null
  fi
done
if [ "$n_fuzzers" -eq 0 ]; then
  echo "fuzz_smoke: no fuzzer under $root/build/fuzz/fuzz; build them with: cmake --preset fuzz && cmake --build --preset fuzz" >&2
  exit 2
fi
exit $failed
