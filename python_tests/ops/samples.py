"""The ops as the shared tests see them: a few valid calls each. test_contract.py runs everything on every one of them.

To add an op, add an entry to SAMPLES. How its registered form is called need not be said: it is recorded from the public
function (`registered_calls`).
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

    `inputs(batch)` makes the positional arguments, random values in float32; batch 0 must give an empty batch. Those at
    `differentiable` are cast to the dtype under test and get gradients, the others are passed on as they are.
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
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        yield


def registered_calls(sample: Sample) -> list[Call]:
    """What one forward and backward asks of torch.ops.glm_ext: the op first, then its backward."""
    arguments = sample.arguments()
    recorder = _Recorder()
    with through_registered_op(), recorder:
        gradients(sample(*arguments), sample.leaves(arguments))
    return recorder.calls


# ------------------------------------------------------------------------------------------------ the ops


def _dropout_add_layer_norm_inputs(batch: int) -> list[Any]:
    return [torch.randn(batch, 3, 19), torch.randn(batch, 3, 19), torch.randn(19), torch.randn(19)]


def _embedding_2d_inputs(batch: int) -> list[Any]:
    ids = [torch.randint(0, rows, (batch, 5)) for rows in (11, 7, 3)]
    return [*ids, torch.randn(11, 19), torch.randn(7, 19), torch.randn(3, 19)]


SAMPLES = [
    *(
        Sample(
            name=f"dropout_add_layer_norm-{p}",
            op=ops.dropout_add_layer_norm,
            reference=reference.dropout_add_layer_norm,
            inputs=_dropout_add_layer_norm_inputs,
            differentiable=(0, 1, 2, 3),
            kwargs={"dropout_p": p},
        )
        for p in (0.0, 0.1)
    ),
    *(
        Sample(
            name=f"embedding_2d-{p}",
            op=ops.embedding_2d,
            reference=reference.embedding_2d,
            inputs=_embedding_2d_inputs,
            differentiable=(3, 4, 5),
            kwargs={"dropout_p": p},
        )
        for p in (0.0, 0.1)
    ),
]
