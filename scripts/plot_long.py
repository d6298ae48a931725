#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Plots what long_bench printed: rows held and median KL against the logical length, one line a method.

    scripts/plot_long.py LONG.jsonl > LONG.svg
"""
import json
import math
import sys

WIDTH, HEIGHT, LEFT, RIGHT, GAP = 720, 190, 70, 150, 46
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]  # Okabe and Ito


def panel(top, title, series, is_log, x_max):
    values = [y for points in series.values() for _, y in points if y is not None and (y > 0 or not is_log)]
    low, high = (min(values), max(values)) if values else (1e-6, 1)
    if is_log:
        low, high = math.floor(math.log10(low)), math.ceil(math.log10(high))
    else:
        low, high = 0, high * 1.05
    high = high if high > low else low + 1

    def x_of(x):
        return LEFT + (WIDTH - LEFT - RIGHT) * x / x_max

    def y_of(y):
        return top + HEIGHT * (1 - ((math.log10(y) if is_log else y) - low) / (high - low))

    out = [f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{title}</text>']
    ticks = range(int(low), int(high) + 1) if is_log else [high * i / 4 for i in range(5)]
    for tick in ticks:
        y = y_of(10.0 ** tick if is_log else tick)
        label = f"1e{tick}" if is_log else f"{tick:.0f}"
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for i in range(5):
        x = x_max * i / 4
        out.append(f'<text x="{x_of(x):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{x:.0f}</text>')
    for colour, (name, points) in zip(COLOURS, series.items()):
        shown = [(x, y) for x, y in points if y is not None and (y > 0 or not is_log)]
        if not shown:
            continue
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in shown)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = shown[-1]
        out.append(f'<text x="{x_of(x) + 6:.1f}" y="{y_of(y) + 4:.1f}" fill="{colour}">{name}</text>')
    return out


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    methods = {}
    with open(sys.argv[1], encoding="utf-8") as file:
        for line in file:
            point = json.loads(line)
            methods.setdefault(point["method"], []).append(point)
    x_max = max(point["logical"] for points in methods.values() for point in points)
    panels = [("rows a head", "physical", False), ("median KL of answers, nats a token", "kl_median", True),
              ("questions answered rightly", "right", False)]
    height = len(panels) * (HEIGHT + GAP) + GAP
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
           f'font-size="12"><rect width="100%" height="100%" fill="white"/>']
    for i, (title, key, is_log) in enumerate(panels):
        series = {name: [(p["logical"], p[key]) for p in points] for name, points in methods.items()}
        out += panel(GAP + i * (HEIGHT + GAP), title + " against logical tokens", series, is_log, x_max)
    print("\n".join(out + ["</svg>"]))


if __name__ == "__main__":
    main()
