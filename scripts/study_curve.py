#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Table and plot of a compact-eval result over numbers of self-study conversations and mixes of query sources.

Prints Markdown: a row for each way to ask, and the cheapest one that keeps enough at 8x. The plot has those that
fix the number of conversations and read nothing else.
"""
import sys

import arguments
import plot

ENOUGH = 0.97  # of the full cache's answers
RATIOS = (8.0, 16.0)


def label(row):
    options = dict(row["options"])
    queries = options.pop("queries", "self_study")
    share = options.pop("reread", None)
    if share is not None:
        queries = queries.replace("repeat_prefill", f"repeat_prefill of {share}")
    count = options.pop("conversations", None)
    options.pop("coverage", None)
    rest = "".join(f", {name}={value}" for name, value in options.items())
    ends = f", {count} conversations" if count else ", until coverage" if "self_study" in queries else ""
    return queries + ends + rest


def percent(value):
    return "" if value is None else f"{100 * value:.1f} %"


def number(value, form):
    return "" if value is None else format(value, form)


def table(ways):
    out = ["| queries | held | " + " | ".join(f"of full, {r:g}x | KL median | KL mean" for r in RATIOS)
           + " | asking, s | x prefill | compaction at 8x, s | x prefill |",
           "|---|" + "--:|" * (5 + 3 * len(RATIOS))]
    for name, rows in ways.items():
        cells = [name, number(rows[RATIOS[0]]["study_conversations"], ".0f")]
        for ratio in RATIOS:
            row = rows[ratio]
            cells += [percent(row["recall_of_full"]), number(row["kl_median"], ".1e"), number(row["kl_mean"], ".1e")]
        seconds = rows[RATIOS[0]]["seconds"]
        for key in ("capture", "total"):
            cells += [number(seconds[key], ".2f"), number(seconds[key] / seconds["prefill"], ".1f")]
        out.append("| " + " | ".join(cells) + " |")
    return out


def cheapest(ways):
    kept = [(rows[RATIOS[0]]["seconds"]["total"], name) for name, rows in ways.items()
            if (rows[RATIOS[0]]["recall_of_full"] or 0) >= ENOUGH]
    if not kept:
        return f"None keeps {100 * ENOUGH:.0f} % of the full cache's answers at {RATIOS[0]:g}x."
    seconds, name = min(kept)
    return (f"The cheapest that keeps {100 * ENOUGH:.0f} % of the full cache's answers at {RATIOS[0]:g}x: "
            f"{name} ({seconds:.2f} s).")


def curve(ways):
    fixed = [rows for rows in ways.values() if set(rows[RATIOS[0]]["options"]) == {"conversations", "coverage"}]

    def points(key, ratio):
        return sorted((int(rows[ratio]["options"]["conversations"]), key(rows[ratio])) for rows in fixed)

    def by_ratio(key):
        return {f"{ratio:g}x": points(key, ratio) for ratio in RATIOS}

    def share(row):
        return None if row["recall_of_full"] is None else 100 * row["recall_of_full"]

    axis = {"x_max": None, "x_ticks": [x for x, _ in points(share, RATIOS[0])]}
    return plot.page([
        {"title": "of the full cache's answers, % against self-study conversations", "series": by_ratio(share), **axis},
        {"title": "median KL of answers, nats a token", "series": by_ratio(lambda row: row["kl_median"]),
         "is_log": True, **axis},
        {"title": "seconds of asking as a multiple of prefill", **axis,
         "series": {"asking": points(lambda row: row["seconds"]["capture"] / row["seconds"]["prefill"], RATIOS[0])}}])


def main():
    parser = arguments.parser(__doc__)
    parser.add_argument("result", metavar="RESULT.json", type=arguments.json_file)
    parser.add_argument("curve", metavar="CURVE.svg", nargs="?")
    options = parser.parse_args()
    result = options.result
    ways = {}
    for row in result["rows"]:
        if row["method"] not in ("full", "none"):
            ways.setdefault(label(row), {})[row["ratio"]] = row
    ways = {name: rows for name, rows in ways.items() if all(ratio in rows for ratio in RATIOS)}
    if not ways:
        sys.exit(f"study_curve.py: no method was measured at {' and '.join(f'{r:g}x' for r in RATIOS)}")
    any_row = next(iter(ways.values()))[RATIOS[0]]
    print(f"Context {any_row['context']}, {any_row['n_docs']} documents, {any_row['recall_n']} questions, "
          f"{result['machine']}, commit {result['commit']}.\n")
    print("\n".join(table(ways)) + "\n\n" + cheapest(ways))
    if options.curve:
        with open(options.curve, "w", encoding="utf-8") as file:
            file.write(curve(ways) + "\n")


if __name__ == "__main__":
    main()
