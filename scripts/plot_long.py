#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Plots what long_bench printed: rows held and median KL against the logical length, one line a method.

    scripts/plot_long.py LONG.jsonl > LONG.svg

Lines that are no JSON object (a log that long_run.sh wrote) are passed over.
"""
import sys

import arguments
import plot


def main():
    parser = arguments.parser(__doc__)
    parser.add_argument("points", metavar="LONG.jsonl", type=arguments.json_lines_file)
    all_points = parser.parse_args().points
    if not all_points:
        sys.exit("plot_long.py: the file has no points to draw")
    is_mixed = len({point["rebase"] for point in all_points}) > 1
    methods = {}
    for point in all_points:
        name = point["method"] + (", rebased" if is_mixed and point["rebase"] else "")
        methods.setdefault(name, []).append(point)
    x_max = max(point["logical"] for points in methods.values() for point in points)
    panels = [("rows a head", "physical", False), ("median KL of answers, nats a token", "kl_median", True),
              ("questions answered rightly", "right", False)]
    print(plot.page([
        {"title": title + " against logical tokens", "x_max": x_max, "is_log": is_log,
         "series": {name: [(p["logical"], p[key]) for p in points] for name, points in methods.items()}}
        for title, key, is_log in panels]))


if __name__ == "__main__":
    main()
