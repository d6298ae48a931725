#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints the Markdown table of a compact-eval result:  results_table.py bench/results/FILE.json CONTEXT RATIO [RATIO ...]"""
import json
import sys


def percent(value):
    return "" if value is None else f"{100 * value:.1f} %"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        result = json.load(file)
    context, ratios = sys.argv[2], [float(ratio) for ratio in sys.argv[3:]]
    print("| cache | method | answers right | of the full cache's | KL mean | KL median | seconds |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for row in result["rows"]:
        if row["context"] != context or (row["method"] not in ("full", "none") and row["ratio"] not in ratios):
            continue
        total = row["seconds"]["total"]
        ratio = "" if row["method"] == "none" else f"{row['real_ratio']:.1f}x smaller" if row["method"] != "full" else f"{row['bytes_before'] / 1048576:.2f} MiB"
        print(f"| {ratio} | {row['method']} | {percent(row['recall'])} | {percent(row['recall_of_full'])} | "
              f"{row['kl_mean']:.1e} | {row['kl_median']:.1e} | {'' if total is None else f'{total:.2f}'} |")


if __name__ == "__main__":
    main()
