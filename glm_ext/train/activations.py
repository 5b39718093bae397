"""Activation checkpointing: less memory for one more forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from glm_ext.nn import GLMBlock


def checkpoint_blocks(model: nn.Module) -> None:
    """Lets every GLMBlock keep its inputs alone in forward, and compute the rest again in backward.

    The second forward pass draws the same dropout seeds and runs under the same autocast, so gradients are
    the same, bit for bit. Where no gradient is wanted nothing changes. Of the activations of L blocks, those
    of one are alive at a time, besides L inputs (Chen et al., "Training Deep Nets with Sublinear Memory
    Cost").

    ValueError if the model has no GLMBlock. A second call changes nothing.
    """
    blocks = [module for module in model.modules() if isinstance(module, GLMBlock)]
    if not blocks:
        raise ValueError(f"model: expected a model with GLMBlocks, got {type(model).__name__} without any")
    for block in blocks:
        if "forward" not in vars(block):
            block.forward = functools.partial(_checkpointed, block.forward)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
