"""gelu_mlp with its own products, with the library's, and plain torch: from which size on which is better.

    python -m benchmarks.gpu_routes [--out benchmarks/results/gpu-routes.json]

What `prefers` in glm_ext/ops/_gelu_mlp_library.py decides comes from here. Times are those of
`benchmarks/gpu_timing.py`; `python -m benchmarks.report` makes the table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from .gpu import conditions, mlp, training
from .gpu_timing import DeviceTimer, Run, take_turns

DTYPES = (torch.bfloat16, torch.float32)
WIDTHS = (768, 1024, 2048)
ROWS = (8, 64, 128, 256, 512, 1024, 4096, 16384)
ROUTES = {"own": "glm_ext, own products", "library": "glm_ext, library products", "eager": "eager"}


def measure(rows: int, width: int, dtype: torch.dtype, timer: DeviceTimer, seconds: float) -> dict[str, Any]:
    """Milliseconds of the device, and of the host, by route: forward, and forward and backward."""
    inputs, forwards = mlp(rows, width, dtype).forwards()
    size: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "width": width, "rows": rows}
    for direction in ("fwd", "fwd+bwd"):
        runs: dict[str, Run] = {
            route: forwards[name] if direction == "fwd" else training(forwards[name], inputs)
            for route, name in ROUTES.items()
        }
        with torch.set_grad_enabled(direction != "fwd"):
            for run in runs.values():
                run()
            times = take_turns(runs, timer, seconds)
        size[direction] = {route: t["median_ms"] for route, t in times.items()}
        size[f"{direction} host"] = {route: t["host_ms"] for route, t in times.items()}
    return size


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu-routes.json"))
    parser.add_argument("--seconds", type=float, default=0.2, help="for each size and direction")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu_routes: expected a CUDA device that torch can use, found none")
        return 1
    timer = DeviceTimer()
    report: dict[str, Any] = {"conditions": {**conditions(timer), "queue": "filled"}, "routes": []}
    for dtype in DTYPES:
        for width in WIDTHS:
            for rows in ROWS:
                report["routes"].append(measure(rows, width, dtype, timer, options.seconds))
                print(report["routes"][-1], flush=True)
                options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
