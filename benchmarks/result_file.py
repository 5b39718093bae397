"""A file of benchmarks/results, and under which conditions it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Report = dict[str, Any]  # {"conditions": {...}, and a key of report.TABLES}


def read(name: str) -> Report:
    report: Report = json.loads((RESULTS / f"{name}.json").read_text())
    return report


def small_print(report: Report, peak: str = "", how: str = "") -> str:
    """Machine, versions, date and commit in one line."""
    given = report["conditions"]
    threads = "1 thread" if given["threads"] == 1 else f"{given['threads']} threads"
    return (
        f"*{given['cpu']}, {given['isa']}, {threads} of {given['cores']} cores{peak}, "
        f"torch {given['torch']}, {given['compiler']}, {given['allocator']}, {given['date']}, "
        f"commit {given['commit']}.{how}*"
    )
