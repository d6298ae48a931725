#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints races that bench/compare --json recorded as one Markdown table.

    race_table.py --peer llama.cpp RACE.json... --peer ik_llama.cpp RACE.json...

A row is a peer, a model, a test and the types of the cache; a column is what stands behind the first dash of a model's
file name (0.6B-q8_0.gguf: q8_0). A cell is the median ratio of the rounds, its interval as the race states it, the
tokens a second of the first program, and the number of rounds. A test that several files hold is the last one's.
"""
import os
import statistics
import sys

import arguments


def add_race(table, peer, race):
    for test in race["tests"]:
        model, _, weights = os.path.splitext(test["model"])[0].partition("-")
        cell = f"{test['ratio']:.2f} ({test['low']:.2f} to {test['high']:.2f}), {statistics.median(test['a']):.0f}; {race['rounds']}"
        table.setdefault((peer, model, test["test"], test["cache"]), {})[weights] = cell


def main():
    parser = arguments.parser(__doc__)
    parser.add_argument("--peer", nargs="+", action="append", required=True, metavar=("NAME", "RACE.json"))
    table = {}
    for peer, *paths in parser.parse_args().peer:
        for path in paths:
            try:
                add_race(table, peer, arguments.json_file(path))
            except arguments.argparse.ArgumentTypeError as error:
                sys.exit(f"race_table.py: {error}")
            except (KeyError, TypeError, AttributeError, statistics.StatisticsError):
                sys.exit(f"race_table.py: {path} is no result of bench/compare --json")
    weights = list(dict.fromkeys(name for cells in table.values() for name in cells))
    print(f"| peer | model | test | cache | {' | '.join(weights)} |")
    print(f"|---|---|---|---{'|--:' * len(weights)}|")
    for row, cells in sorted(table.items()):
        print(f"| {' | '.join(row)} | {' | '.join(cells.get(name, '') for name in weights)} |")


if __name__ == "__main__":
    main()
