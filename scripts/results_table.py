#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints the Markdown table of a compact-eval result; full and none stand first."""
import sys

import arguments


def percent(value):
    return "" if value is None else f"{100 * value:.1f} %"


def main():
    parser = arguments.parser(__doc__)
    parser.add_argument("result", metavar="FILE.json", type=arguments.json_file)
    parser.add_argument("context", metavar="CONTEXT")
    parser.add_argument("methods", metavar="METHOD[@RATIO]", nargs="+")
    options = parser.parse_args()
    result, context = options.result, options.context
    wanted = [("full", None), ("none", None)]
    for word in options.methods:
        method, _, ratio = word.partition("@")
        wanted.append((method, float(ratio) if ratio else None))
    print("| cache | method | answers right | of the full cache's | KL mean | KL median | seconds |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for method, ratio in wanted:
        rows = [row for row in result["rows"]
                if row["context"] == context and row["method"] == method and (ratio is None or row["ratio"] == ratio)]
        if not rows or rows[0]["recall"] is None:
            sys.exit(f"results_table.py: the file has no answers of {method} at {ratio} for context {context}")
        row = rows[0]
        total = row["seconds"]["total"]
        ratio = "" if row["method"] == "none" else f"{row['real_ratio']:.1f}x smaller" if row["method"] != "full" else f"{row['bytes_before'] / 1048576:.2f} MiB"
        print(f"| {ratio} | {row['method']} | {percent(row['recall'])} | {percent(row['recall_of_full'])} | "
              f"{row['kl_mean']:.1e} | {row['kl_median']:.1e} | {'' if total is None else f'{total:.2f}'} |")


if __name__ == "__main__":
    main()
