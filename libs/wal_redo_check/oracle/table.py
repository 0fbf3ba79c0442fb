#!/usr/bin/env python3
"""Prints the table of record kinds in docs/wal_redo.md from reports of run.py --json.

    table.py REPORT.json ...
"""

import json
import pathlib
import re
import sys
from collections import defaultdict

ABSENT = pathlib.Path(__file__).with_name("expected_absent.txt")


def reasons() -> dict[str, str]:
    """Why a kind does not occur."""
    lines = re.findall(r"^(\S+/\S+)\s+# (.*)$", ABSENT.read_text(), re.MULTILINE)
    return dict(lines)


def main():
    reports = [report for path in sys.argv[1:] for report in json.loads(pathlib.Path(path).read_text()).values()]
    sums = defaultdict(lambda: defaultdict(int))
    for report in reports:
        for kind, counts in report["kinds"].items():
            for name, count in counts.items():
                sums[kind.removesuffix("+INIT")][name] += count
    absent = set.intersection(*(set(report["not_exercised"]) for report in reports))
    print("| resource manager | kind | records | blocks equal | restored from images | different or failed |")
    print("|---|---|---:|---:|---:|---:|")
    for kind in sorted(sums | dict.fromkeys(absent)):
        manager, name = kind.split("/", 1)
        if kind in absent:
            print(f"| {manager} | {name} | 0 | {reasons().get(kind, 'not exercised')} | | |")
            continue
        counts = sums[kind]
        wrong = counts["mismatches"] + counts["errors"]
        print(f"| {manager} | {name} | {counts['records']} | {counts['equal']} | {counts['restored']} | {wrong} |")


if __name__ == "__main__":
    main()
