# SPDX-License-Identifier: MIT
"""What the Python scripts of this folder that take arguments have in common."""
import argparse
import json


def parser(doc):
    """A parser whose --help is the script's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def json_file(path):
    """A type of argument: what a JSON file holds."""
    return _read(path, json.load)


def json_lines_file(path):
    """A type of argument: the objects of a file, one a line; other lines are passed over."""
    return _read(path, lambda file: [json.loads(line) for line in file if line.startswith("{")])


def _read(path, parse):
    try:
        with open(path, encoding="utf-8") as file:
            return parse(file)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from error
