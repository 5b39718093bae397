"""What this installation is made of: `python -m glm_ext.info`, or `glm-ext info`.

Meant to be pasted whole into a bug report.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform

import torch

from glm_ext import _C

_PEERS = ("flash_attn", "xformers", "transformers")


def collect() -> dict[str, str]:
    """The facts, in the order in which they are printed.

    Example:
        >>> collect()["torch"] == torch.__version__
        True
    """
    return {
        "glm_ext": _version("glm_ext") or "not installed, imported from a source tree",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "numpy": _version("numpy") or "not installed",
        **_kernels(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} logical CPUs",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use",
        "allocator": os.environ.get("LD_PRELOAD") or "the C library's (LD_PRELOAD is not set)",
        **{peer: _version(peer) or "not installed" for peer in _PEERS},
        "FlexAttention": _found(importlib.util.find_spec("torch.nn.attention.flex_attention") is not None),
        "F.linear_cross_entropy": _found(hasattr(torch.nn.functional, "linear_cross_entropy")),
    }


def main() -> int:
    facts = collect()
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")
    return 0


def _kernels() -> dict[str, str]:
    return {
        "compiler": _C.compiler(),
        "instruction set": f"{_C.isa()} (built: {_listed(_C.isas_built())};"
        f" this CPU runs: {_listed(_C.isas_supported())}; GLM_FORCE_ISA chooses another)",
        "CUDA kernels": _C.cuda_architectures() or "not built (build them with GLM_CUDA=on)",
    }


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _found(found: bool) -> str:
    return "available" if found else "not in this torch"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    raise SystemExit(main())
