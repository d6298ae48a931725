#!/bin/bash
# SPDX-License-Identifier: MIT
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
usage="usage: fuzz_smoke.sh SECONDS
Runs every built fuzzer for that long, one line each; fails on a finding, which it keeps in build/fuzz/findings.
Build first: cmake --preset fuzz && cmake --build --preset fuzz"
source "$root/scripts/options.sh"
if ! [[ $# -eq 1 && $1 =~ ^[1-9][0-9]{0,5}$ ]]; then
  read_options "" "$@"
  wrong_usage "needs SECONDS"
fi
seconds=$1
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
  fail "no fuzzer under $root/build/fuzz/fuzz; build them with: cmake --preset fuzz && cmake --build --preset fuzz"
fi
exit $failed
