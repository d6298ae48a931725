#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Copies a GGUF with another RoPE base and context length, so that a model reads far beyond what it was trained for.

A higher base turns the slow pairs more slowly: positions that were never seen come to look like those that were
("NTK-aware" scaling). Only the two numbers change; the file keeps its size.
"""
import argparse
import struct
import sys

import arguments

TYPE_U32, TYPE_F32 = 4, 6  # of GGUF values


def patch(data, suffix, wanted_type, form, value):
    """Overwrites the value of the key ARCH.suffix."""
    for arch in (b"llama", b"qwen2", b"qwen3"):
        key = arch + b"." + suffix
        at = data.find(struct.pack("<Q", len(key)) + key)
        if at >= 0:
            break
    else:
        sys.exit(f"stretch_rope.py: the model has no key that ends in .{suffix.decode()}")
    at += 8 + len(key)
    (found_type,) = struct.unpack_from("<I", data, at)
    if found_type != wanted_type:
        sys.exit(f"stretch_rope.py: the model's {key.decode()} has type {found_type}, expected {wanted_type}")
    struct.pack_into(form, data, at + 4, value)


def main():
    parser = arguments.parser(__doc__)
    parser.add_argument("model", metavar="MODEL.gguf", type=argparse.FileType("rb"))
    parser.add_argument("copy", metavar="COPY.gguf")
    parser.add_argument("base", metavar="BASE", type=float)
    parser.add_argument("context", metavar="CONTEXT", type=int)
    options = parser.parse_args()
    with options.model as file:
        data = bytearray(file.read())
    patch(data, b"rope.freq_base", TYPE_F32, "<f", options.base)
    patch(data, b"context_length", TYPE_U32, "<I", options.context)
    with open(options.copy, "wb") as file:
        file.write(data)


if __name__ == "__main__":
    main()
