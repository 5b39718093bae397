"""
The kernels of glm_ext. Call them through glm_ext.ops, which checks arguments and allocates results.
"""

from __future__ import annotations

import typing

import torch

__all__: list[str] = [
    "compiler",
    "cuda_architectures",
    "cuda_devices",
    "dropout_add_layer_norm_backward",
    "dropout_add_layer_norm_forward",
    "dropout_add_layer_norm_partials",
    "fma_peak",
    "isa",
    "isas_built",
    "isas_supported",
]

def compiler() -> str:
    """
    The compiler that built the extension.
    """

def cuda_architectures() -> str:
    """
    The CUDA architectures that this build holds, as in "80 90a"; empty without CUDA.
    """

def cuda_devices() -> list[tuple[str, int, int]]:
    """
    (name, major, minor) of each GPU that the CUDA build sees: major.minor is its compute capability.
    """

def dropout_add_layer_norm_backward(
    grad_normed: torch.Tensor | None,
    grad_new_residual: torch.Tensor | None,
    new_residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
    grad_x: torch.Tensor | None,
    grad_residual: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    workspace: torch.Tensor | None,
    dropout_p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def dropout_add_layer_norm_forward(
    x: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    normed: torch.Tensor | None,
    new_residual: torch.Tensor | None,
    mean: torch.Tensor | None,
    rstd: torch.Tensor | None,
    eps: typing.SupportsFloat | typing.SupportsIndex,
    dropout_p: typing.SupportsFloat | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex,
    threads: typing.SupportsInt | typing.SupportsIndex,
) -> None: ...
def dropout_add_layer_norm_partials(rows: typing.SupportsInt | typing.SupportsIndex) -> int: ...
def fma_peak(threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    """
    Measured float multiply-add peak of this machine, GFLOP/s.
    """

def isa() -> str:
    """
    The instruction set of the CPU kernels in force.
    """

def isas_built() -> list[str]:
    """
    The instruction sets that this build holds, best first.
    """

def isas_supported() -> list[str]:
    """
    Those of them that this machine runs.
    """
