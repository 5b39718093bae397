"""The ops as layers with backend "auto" call them on a GPU.

Fused where this build has the kernels, forward and backward, for the dtype at hand; plain torch
(glm_ext.ops.reference) else. Op by op, by the table in _cuda.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from glm_ext import ops
from glm_ext.ops import _cuda, reference
from glm_ext.ops._library import autocast_dtype


def _choose(
    name: str,
    kernel: str | None = None,
    fits: Callable[[Tensor, torch.dtype, bool], bool] = lambda first, dtype, gradient: True,
) -> Callable[..., Any]:
    def op(*args: Any, **kwargs: Any) -> Any:
        tensors = [t for t in args if isinstance(t, Tensor) and t.is_floating_point()]
        dtype = tensors[0].dtype
        if dtype != torch.float64:
            dtype = autocast_dtype(tensors[0].device.type) or dtype
        gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        runs = (
            _cuda.has_kernel(kernel or name, dtype, gradient)
            and _cuda.runs_on(tensors[0].device)
            and fits(tensors[0], dtype, gradient)
        )
        return getattr(ops if runs else reference, name)(*args, **kwargs)

    op.__name__ = op.__qualname__ = name
    return op


def _attention_fits(query: Tensor, dtype: torch.dtype, gradient: bool) -> bool:
    """16 bytes of a head move at a time; of more than 512, backward finds no room on a small card."""
    head_bytes = query.shape[-1] * dtype.itemsize
    if gradient and head_bytes > 512 and _cuda.shared_bytes(query.device) < 163 * 1024:
        return False
    return head_bytes % 16 == 0


dropout_add_layer_norm = _choose("dropout_add_layer_norm")
embedding_2d = _choose("embedding_2d")
gelu_mlp = _choose("gelu_mlp")
linear = _choose("linear")
linear_cross_entropy = _choose("linear_cross_entropy")
tied_embedding_2d = _choose("tied_embedding_2d", "embedding_2d")
span_attention = _choose("span_attention", fits=_attention_fits)
span_attention_qkvpacked = _choose("span_attention_qkvpacked", "span_attention", _attention_fits)
span_attention_varlen = _choose("span_attention_varlen", "span_attention", _attention_fits)
