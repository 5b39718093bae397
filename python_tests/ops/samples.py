"""The ops as the shared tests see them, a few valid calls each. test_contract.py runs all on every one.

To add an op, add an entry to SAMPLES. How its registered form is called need not be said: it is recorded from
the public function (`registered_calls`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glm_ext import ops
from glm_ext.ops import reference


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One call of one op: `op(*inputs(batch), **kwargs)`.

    `inputs(batch)` makes the positional arguments, random, in float32; batch 0 must give an empty batch.
    Those at `differentiable` are cast to the dtype under test and get gradients, the others are passed on.
    Keep the sizes odd and small: gradcheck visits every element.
    """

    name: str
    op: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Callable[[int], list[Any]]
    differentiable: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def arguments(self, dtype: torch.dtype = torch.float32, batch: int = 2) -> list[Any]:
        """Fresh leaves of the same values on every call."""
        torch.manual_seed(1)
        made = self.inputs(batch)
        for i in self.differentiable:
            made[i] = made[i].to(dtype).requires_grad_()
        return made

    def leaves(self, arguments: list[Any]) -> list[Tensor]:
        return [arguments[i] for i in self.differentiable]

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """The outputs, always a tuple, with the dropout seed that every test shares."""
        return outputs_of(self.op, arguments, self.kwargs)

    def truth(self, *arguments: Any) -> tuple[Tensor, ...]:
        return outputs_of(self.reference, arguments, self.kwargs)


def outputs_of(op: Callable[..., Any], arguments: Any, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    out = op(*arguments, **kwargs)
    return (out,) if isinstance(out, Tensor) else tuple(out)


def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor], **options: Any) -> tuple[Tensor | None, ...]:
    """Gradients for random incoming ones, the same on every call."""
    outputs = tuple(t for t in outputs if t.requires_grad)
    generator = torch.Generator().manual_seed(3)
    incoming = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs]
    return torch.autograd.grad(outputs, leaves, incoming, allow_unused=True, **options)


@dataclass(frozen=True)
class Call:
    op: Any  # torch.ops.glm_ext.NAME.default
    args: tuple[Any, ...]

    @property
    def name(self) -> str:
        return str(self.op).split(".")[1]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "glm_ext":
            self.calls.append(Call(op, tuple(t.detach() if isinstance(t, Tensor) else t for t in args)))
        return op(*args, **(kwargs or {}))


@contextmanager
def through_registered_op() -> Iterator[None]:
    """Public functions take the way that they take under torch.compile."""
    # The flag, not the function: torch.compile knows functions by identity, and looks them up once for good.
    with mock.patch.object(torch.compiler, "_is_compiling_flag", True):
        yield


def registered_calls(sample: Sample) -> list[Call]:
    """What one forward and backward asks of torch.ops.glm_ext: the op first, then its backward."""
    arguments = sample.arguments()
    recorder = _Recorder()
    with through_registered_op(), recorder:
        gradients(sample(*arguments), sample.leaves(arguments))
    return recorder.calls


# ---------------------------------------------------------------------------------------------------- the ops


def _span_attention(batch: int) -> list[Any]:
    prefix_len, seq_len = torch.tensor([3, 0, 9, 1, 5])[:batch], torch.tensor([9, 7, 9, 2, 5])[:batch]
    query, key, value = torch.randn(batch, 4, 9, 5), torch.randn(batch, 2, 9, 5), torch.randn(batch, 2, 9, 5)
    return [query, key, value, prefix_len, seq_len]


def _span_attention_qkvpacked(batch: int) -> list[Any]:
    prefix_len, seq_len = torch.tensor([3, 0, 9, 1, 5])[:batch], torch.tensor([9, 7, 9, 2, 5])[:batch]
    return [torch.randn(batch, 9, 3, 2, 5), prefix_len, seq_len]


def _span_attention_varlen(batch: int) -> list[Any]:
    lengths = torch.tensor([4, 7, 1, 3, 5])[:batch]
    cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    N = int(cu_seqlens[-1])
    return [*(torch.randn(N, heads, 5) for heads in (4, 2, 2)), cu_seqlens, lengths // 2]


def _dropout_add_layer_norm(batch: int) -> list[Any]:
    return [torch.randn(batch, 3, 19), torch.randn(batch, 3, 19), torch.randn(19), torch.randn(19)]


def _embedding_2d(batch: int) -> list[Any]:
    ids = [torch.randint(0, rows, (batch, 5)) for rows in (11, 7, 3)]
    return [*ids, torch.randn(11, 19), torch.randn(7, 19), torch.randn(3, 19)]


def _gelu_mlp(batch: int) -> list[Any]:
    return [torch.randn(batch, 3, 5), torch.randn(13, 5), torch.randn(13), torch.randn(7, 13), torch.randn(7)]


def _linear(batch: int) -> list[Any]:
    return [torch.randn(batch, 3, 5), torch.randn(13, 5), torch.randn(13)]


def _linear_cross_entropy(batch: int) -> list[Any]:
    loss_mask = torch.arange(batch * 5).remainder(3).reshape(batch, 5) / 2
    return [torch.randn(batch, 5, 7), torch.randn(19, 7), torch.randint(0, 19, (batch, 5)), loss_mask]


def _samples(
    name: str, inputs: Callable[[int], list[Any]], differentiable: tuple[int, ...], *variants: dict[str, Any]
) -> list[Sample]:
    """One sample of ops.`name` for each variant of its keyword arguments."""
    return [
        Sample(
            name="-".join((name, *map(str, kwargs.values()))),
            op=getattr(ops, name),
            reference=getattr(reference, name),
            inputs=inputs,
            differentiable=differentiable,
            kwargs=kwargs,
        )
        for kwargs in variants
    ]


DROPOUT: list[dict[str, Any]] = [{"dropout_p": 0.0}, {"dropout_p": 0.1}]
SAMPLES = [
    *_samples("span_attention", _span_attention, (0, 1, 2), *DROPOUT, {"dropout_p": 0.1, "return_lse": True}),
    *_samples("span_attention_qkvpacked", _span_attention_qkvpacked, (0,), *DROPOUT),
    *_samples("span_attention_varlen", _span_attention_varlen, (0, 1, 2), *DROPOUT),
    *_samples("dropout_add_layer_norm", _dropout_add_layer_norm, (0, 1, 2, 3), *DROPOUT),
    *_samples("embedding_2d", _embedding_2d, (3, 4, 5), *DROPOUT),
    *_samples(
        "gelu_mlp",
        _gelu_mlp,
        (0, 1, 2, 3, 4),
        *({"recompute": kept, "approximate": "tanh"} for kept in ("none", "activation", "all")),
        {"recompute": "activation", "approximate": "none"},
    ),
    *_samples("linear", _linear, (0, 1, 2), {}),
    *_samples(
        "linear_cross_entropy",
        _linear_cross_entropy,
        (0, 1),
        {"reduction": "mean", "label_smoothing": 0.1},
        {"reduction": "none"},
    ),
]
