#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Renders the templates of tests/golden/jinja_cases.json again with Python's Jinja2 and writes its texts back.

Add a case as {"template": "..."} and run this; needs the jinja2 package. The environment is the one that Hugging Face
transformers sets up for chat templates, plus `do`, in the sandbox that allows lists and dictionaries to be changed.
"""
import json
import pathlib

import arguments

arguments.parser(__doc__).parse_args()  # first, so that --help needs no jinja2

import jinja2
import jinja2.ext
import jinja2.sandbox

PATH = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "jinja_cases.json"


class Generation(jinja2.ext.Extension):
    """{% generation %}: prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def main():
    environment = jinja2.sandbox.SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols", "jinja2.ext.do"])
    environment.filters["tojson"] = tojson
    data = json.loads(PATH.read_text(encoding="utf-8"))
    data["made_with"] = f"scripts/make_jinja_cases.py, Jinja2 {jinja2.__version__}"
    for case in data["cases"]:
        variables = json.loads(json.dumps(data["variables"]))  # templates may change them
        case["text"] = environment.from_string(case["template"]).render(**variables)
    PATH.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


main()
