"""Which ops have CUDA kernels, and for which dtypes: the one table of what runs on a GPU.

A line here stands for a kernel in the table of csrc/cuda/kernels.cu. Where an op or a dtype has none, the op
says so, and layers with backend "auto" run plain torch for that op alone (glm_ext/ops/auto.py).
"""

from __future__ import annotations

import enum
import functools
import os

import torch

from glm_ext import _C

BUILT = _C.cuda_architectures() != ""

_ALL = (torch.float32, torch.bfloat16, torch.float16)
KERNELS: dict[str, tuple[torch.dtype, ...]] = {
    "dropout_add_layer_norm": _ALL,
    "dropout_add_layer_norm_backward": _ALL,
    "embedding_2d": _ALL,
    "embedding_2d_backward": _ALL,
    "gelu_mlp": _ALL,
    "gelu_mlp_backward": _ALL,
    "linear_cross_entropy": _ALL,
    "linear_cross_entropy_backward": _ALL,
    "span_attention": _ALL,
    "span_attention_backward": _ALL,
}


class GradQuery(enum.IntEnum):
    """How a GPU comes to attention's gradient of the query: as in csrc/ops/span_attention.h."""

    OWN_KERNEL = 0
    SUMS_IN_ORDER = 1
    SUMS_IN_ANY_ORDER = 2


# No card has proven the second and third way yet, so they must be asked for.
atomics = os.environ.get("GLM_ATOMICS") == "1"
five_products = os.environ.get("GLM_FIVE_PRODUCTS") == "1"


def way_to_grad_query() -> GradQuery:
    if atomics:
        return GradQuery.SUMS_IN_ANY_ORDER
    return GradQuery.SUMS_IN_ORDER if five_products else GradQuery.OWN_KERNEL


def allow_atomics(allowed: bool = True) -> None:
    """Whether CUDA kernels of this process may add in an order that differs from run to run.

    Off at first (on with ``GLM_ATOMICS=1`` in the environment): every op gives the same bits on every run.
    On, backward of attention in bfloat16 and float16, head dims up to 128, sums the gradient of the query by
    atomic additions, in float32: five matrix products a tile instead of seven, and the last bits of that
    gradient differ. Nothing else changes, and nothing on a CPU.

    >>> allow_atomics()
    >>> allow_atomics(False)
    """
    global atomics
    atomics = allowed


def use_ffma(wanted: bool = True) -> None:
    """Whether attention in float32 on a GPU multiplies by FFMA, for this process.

    Off at first (on with ``GLM_FFMA=1`` in the environment): tensor cores multiply floats as three products
    of tf32, which leaves out what is below 2^-22 of a product. On, the float units multiply, whose peak is
    lower, and each product is rounded once, with the sum that it is added to. Nothing else changes: no other
    dtype, no other op, and nothing on a CPU. No card has run it yet.

    >>> use_ffma()
    >>> use_ffma(False)
    """
    _C.use_ffma(wanted)


def has_kernel(op: str, dtype: torch.dtype, gradient: bool = False) -> bool:
    """Whether this build runs `op` on a GPU; with `gradient`, whether it also runs its backward there."""
    names = (op, f"{op}_backward") if gradient else (op,)
    return BUILT and all(dtype in KERNELS.get(name, ()) for name in names)


@functools.cache
def _device(index: int) -> tuple[str, int, int, int]:
    """What _C.cuda_devices() says of a GPU; zeros where this build does not see it."""
    devices = _C.cuda_devices()
    return devices[index] if index < len(devices) else ("", 0, 0, 0)


def shared_bytes(device: torch.device) -> int:
    """Of shared memory that a block of this GPU can have."""
    return _device(device.index)[3]


def runs_on(device: torch.device) -> bool:
    """Whether this build has code for a GPU: of its architecture, or of an earlier one without an a."""
    _, major, minor, _ = _device(device.index)
    for arch in _C.cuda_architectures().split():
        built = divmod(int(arch.rstrip("af")), 10)
        if built == (major, minor) or (arch.isdigit() and built < (major, minor)):
            return True
    return False


# What torch.compiler.assume_constant_result does: to name it would import the compiler, which takes a second.
for _constant in (shared_bytes, runs_on):
    _constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def require_kernel(op: str, dtype: torch.dtype, device: torch.device) -> None:
    if has_kernel(op, dtype) and runs_on(device):
        return
    dtypes = ", ".join(str(d).removeprefix("torch.") for d in KERNELS.get(op, ()))
    if not BUILT:
        reason = "this build of glm_ext has no CUDA kernels; build it with GLM_CUDA=on"
    elif not dtypes:
        reason = "it has no CUDA kernel yet"
    elif not has_kernel(op, dtype):
        reason = f"its CUDA kernels take {dtypes}, got {str(dtype).removeprefix('torch.')}"
    else:
        _, major, minor, _ = _device(device.index)
        reason = (
            f"this build has kernels for the architectures {_C.cuda_architectures()}, and this GPU has "
            f"compute capability {major}.{minor}; from 8.0 on, build it with GLM_CUDA_ARCHS=native"
        )
    raise NotImplementedError(
        f"glm_ext.{op}: expected tensors on the CPU, got cuda: {reason}. Or use glm_ext.ops.reference, or "
        "layers with backend 'auto', which run plain torch there"
    )
