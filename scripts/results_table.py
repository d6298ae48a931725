#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints the Markdown table of a compact-eval result:
results_table.py bench/results/FILE.json CONTEXT METHOD[@RATIO] [METHOD[@RATIO] ...]  (full and none stand first)"""
import json
import sys


def percent(value):
    return "" if value is None else f"{100 * value:.1f} %"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        result = json.load(file)
    context = sys.argv[2]
    wanted = [("full", None), ("none", None)]
    for word in sys.argv[3:]:
        method, _, ratio = word.partition("@")
        wanted.append((method, float(ratio) if ratio else None))
    print("| cache | method | answers right | of the full cache's | KL mean | KL median | seconds |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for method, ratio in wanted:
        rows = [row for row in result["rows"]
                if row["context"] == context and row["method"] == method and (ratio is None or row["ratio"] == ratio)]
        if not rows or rows[0]["recall"] is None:
            sys.exit(f"results_table.py: {sys.argv[1]} has no answers of {method} at {ratio} for context {context}")
        row = rows[0]
        total = row["seconds"]["total"]
        ratio = "" if row["method"] == "none" else f"{row['real_ratio']:.1f}x smaller" if row["method"] != "full" else f"{row['bytes_before'] / 1048576:.2f} MiB"
        print(f"| {ratio} | {row['method']} | {percent(row['recall'])} | {percent(row['recall_of_full'])} | "
              f"{row['kl_mean']:.1e} | {row['kl_median']:.1e} | {'' if total is None else f'{total:.2f}'} |")


if __name__ == "__main__":
    main()
