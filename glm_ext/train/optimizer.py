"""AdamW as GLM uses it, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from glm_ext.train.config import OptimConfig

# Where torch has a fused AdamW: one pass over memory instead of about ten.
_FUSED_DEVICES = {"cpu", "cuda"}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW in two groups: matrices and embedding tables decay, vectors (biases, LayerNorm) do not.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, algorithm 2; the grouping is that of
    the public GLM code, which decays the embeddings too.

    Example:
        >>> optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), OptimConfig())
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.1), (3, 0.0)]
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in _FUSED_DEVICES for p in parameters)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """{parameter name + "." + key: tensor}, without rates and groups, which follow from the config."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of optimizer_tensors. Raises KeyError for a tensor of no parameter."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition(".")
        parameter = parameters[parameter_name]
        optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)
