"""What a step did and what it took: useful work, the machine's peak, memory."""

from __future__ import annotations

import sys

import torch

from glm_ext import _C
from glm_ext.config import GLMConfig


def useful_flops(config: GLMConfig, *, tokens: int, targets: int) -> int:
    """Floating-point operations that training on so many tokens cannot do without, forward and backward.

        6 (tokens L (4 E^2 + 2 E F) + targets E V)

    A weight meets a token in one multiply-add forward and two backward, 6 operations: in each of L blocks the
    projections of attention (4 E^2) and the MLP (2 E F), and for a target the vocabulary matrix (E V).
    Padding, anything computed again in backward, and rows without a target do not count. Nor does attention
    between tokens, which depends on their lengths: with T visible keys a token and F = 4 E it would add
    T / (6 E) of the blocks' part, so the share of the peak made of this is a lower bound.

    Source: Kaplan et al., "Scaling Laws for Neural Language Models", section 2.1; Chowdhery et al., "PaLM",
    appendix B (model FLOPs utilization).

    Example:
        >>> base = GLMConfig.preset("base")
        >>> useful_flops(base, tokens=2048, targets=408) / 1e12  # L 12, E 768, F 3072, V 30592
        1.101191970816
    """
    E, F = config.hidden_size, config.ffn_hidden_size
    return 6 * (tokens * config.num_layers * (4 * E * E + 2 * E * F) + targets * E * config.vocab_size)


def peak_flops(device: torch.device, precision: str = "float32") -> float | None:
    """float32 multiply-adds, as two operations each, that the CPU reaches in a second with torch's threads.

    Measured for about a tenth of a second. None for a device or a precision whose peak is not measured: a
    product of 16 bits may be faster.
    """
    if device.type != "cpu" or precision != "float32":
        return None
    return _C.fma_peak(torch.get_num_threads()) * 1e9


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, the most that tensors have held; of the CPU, the most that the process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
