"""How an op meets torch: the registration under torch.ops.glm_ext, and when it takes the short path instead.

An op is called in one of two ways. Eagerly, on plain tensors, through a torch.autograd.Function straight over
the binding: the shortest path. When something watches (torch.compile, export, fake tensors, tensor
subclasses), through the registered op, which has a fake and an autograd formula and stays one node in the
graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from glm_ext.ops._cuda import require_kernel

LIBRARY = torch.library.Library("glm_ext", "DEF")
AUTOCAST_DEVICES = ("cpu", "cuda")


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    check: Callable[..., None] | None = None,
    autocast: Callable[..., Any] | None = None,
) -> None:
    """Define `schema` with its kernel, which serves a CPU and a GPU (see `target`), and its fake.

    `check(*args)` raises for arguments that do not fit together, where the op is called without its function.
    `autocast(device_type, *args)` returns the arguments as the op wants them under autocast (see
    `cast_for_autocast`).
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel if check is None else _checked(kernel, check), device)
    torch.library.register_fake(f"glm_ext::{name}", fake, lib=LIBRARY)
    if autocast is not None:
        op = getattr(torch.ops.glm_ext, name)
        for device in AUTOCAST_DEVICES:
            LIBRARY.impl(name, _autocast_kernel(op, autocast, device), f"Autocast{device.upper()}")


def _checked(kernel: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    def checked(*args: Any) -> Any:
        check(*args)
        return kernel(*args)

    return checked


def _autocast_kernel(op: Any, autocast: Callable[..., Any], device: str) -> Callable[..., Any]:
    key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")

    def kernel(*args: Any) -> Any:
        args = autocast(device, *args)  # before the guard, which makes autocast look disabled
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op(*args)

    return kernel


def watched(*tensors: Tensor | None) -> bool:
    """True when the call must take the registered op: the short path is for plain tensors in memory.

    A tracer or a mode sees what goes through the dispatcher alone. The dispatcher also makes numbers of what
    only stands for them: the negative of a view, zeros without memory.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing():
        return True
    return not all(
        t is None
        or (
            (type(t) is Tensor or type(t) is Parameter)
            and (t.is_cpu or t.is_cuda)
            and not (t.is_neg() or t._is_zerotensor())
        )
        for t in tensors
    )


def readable(*tensors: Tensor) -> bool:
    """True where values may be looked at: on a GPU that is to wait for it, in a graph there are none."""
    return all(t.is_cpu for t in tensors) and not watched(*tensors)


class _Unrecorded:
    """The context of a forward that no backward will follow: it keeps nothing."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


def short_path(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply`, or its forward alone where nothing is recorded: it costs as much as a small op."""
    recorded = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)
    # Forward-mode derivatives and torch.func ask the Function too, and get its error.
    if recorded or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return function.forward(_Unrecorded(), *arguments)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast asks for on this device, or None where it is off."""
    if device_type in AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def cast_for_autocast(dtype: torch.dtype | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Floating tensors in `dtype`; float64 is left alone, as torch does. None casts nothing."""
    if dtype is None:
        return tensors
    return tuple(t if t.dtype in (torch.float64, dtype) else t.to(dtype) for t in tensors)


def draw_seed(dropout_p: float) -> Tensor | None:
    """A seed from torch's CPU generator, which torch.manual_seed fixes; None when nothing is dropped."""
    return torch.randint(0, 2**63 - 1, (), device="cpu") if dropout_p > 0.0 else None


def seed_value(seed: Tensor | None) -> int:
    return 0 if seed is None else int(seed)


def target(op: str, tensor: Tensor) -> int | tuple[int, int]:
    """Where the kernel of a call runs, as the binding takes it: threads, or a GPU and its current stream.

    Raises NotImplementedError for a tensor on a GPU where `op` has no kernel for its dtype.
    """
    if tensor.device.type != "cuda":
        return torch.get_num_threads()
    require_kernel(op, tensor.dtype, tensor.device)
    index = tensor.device.index
    return index, current_stream(index)


def _stream_of_an_object(device: int) -> int:
    return torch.cuda.current_stream(device).cuda_stream


# What torch's compiled code calls: the handle alone, without a Stream around it. Not in a torch without CUDA.
current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_of_an_object)


class _FirstOrder(torch.autograd.Function):
    """Passes gradients on, still tied to what they were computed from, so that a second derivative raises."""

    @staticmethod
    def forward(ctx: Any, op: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        return tuple(t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"{ctx.op}: trying to differentiate twice; this op has first derivatives only")


def _in_memory(grad: Tensor | None) -> Tensor | None:
    """A gradient with its numbers where a kernel reads them (see `watched`)."""
    if grad is None or not (grad.is_neg() or grad._is_zerotensor()):
        return grad
    return grad.clone().resolve_neg()


def first_order_only(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """For a Function's backward whose gradients have no derivative of their own.

    As torch's once_differentiable, but the error also comes where only the saved tensors, not the incoming
    gradients, would have been differentiated again: a gradient penalty must never be dropped in silence.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            outputs = backward(ctx, *map(_in_memory, grads))
        if not torch.is_grad_enabled():  # the usual case: no create_graph
            return outputs
        given = [t for t in outputs if t is not None]
        sources = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.requires_grad]
        marked = iter(_FirstOrder.apply(type(ctx).__name__, len(given), *given, *sources))  # type: ignore[no-untyped-call]
        return tuple(None if t is None else next(marked) for t in outputs)

    return wrapper
