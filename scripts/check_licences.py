#!/usr/bin/env python3
"""Checks that every dependency's licence is one the project may link: reads `cargo metadata`, needs no network."""

import json
import re
import subprocess
import sys

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}


def allowed(expression: str) -> bool:
    """Whether an SPDX expression leaves a way to use the crate: one side of each OR, both sides of each AND."""
    tokens = re.findall(r"\(|\)|/|[^()\s/]+", expression.replace(" WITH ", "\0"))
    tokens = [{"/": "OR"}.get(token, token.replace("\0", " WITH ")) for token in tokens]

    def either() -> bool:
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = both() or value
        return value

    def both() -> bool:
        value = atom()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = atom() and value
        return value

    def atom() -> bool:
        token = tokens.pop(0)
        if token != "(":
            return token in ALLOWED
        value = either()
        tokens.pop(0)
        return value

    return either()


def main() -> int:
    metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--locked"]))
    bad = [
        f"{package['name']} {package['version']}: {package['license'] or 'no licence'}"
        for package in metadata["packages"]
        if not package["license"] or not allowed(package["license"])
    ]
    print("\n".join(bad) or f"licences of {len(metadata['packages'])} packages are fine")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
