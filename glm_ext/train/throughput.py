"""What a step did and what it took: useful work, the machine's peak, memory."""

from __future__ import annotations

import math
import sys
import time

import torch

from glm_ext import _C
from glm_ext.config import GLMConfig
from glm_ext.nn import ops_for


def useful_flops(config: GLMConfig, *, tokens: int, targets: int, pairs: int) -> int:
    """Floating-point operations that training on so many tokens cannot do without, forward and backward.

        6 (tokens L (4 E^2 + 2 E F) + targets E V) + 14 pairs L E

    A weight meets a token in one multiply-add forward and two backward, 6 operations: in each of L blocks the
    projections of attention (4 E^2) and the MLP (2 E F), and for a target the vocabulary matrix (E V).

    pairs: of a token and one that it sees, `Batch.visible_pairs`. In each head of D channels a pair costs one
    multiply-add a channel in each of two products forward, 4 D, and 3.5 times that with backward, whose five
    products begin with the scores again: no S x S matrix is stored. H D = E.

    Padding, masked pairs, rows without a target, and blocks computed again by activation checkpointing do not
    count.

    Source: Kaplan et al., "Scaling Laws for Neural Language Models", section 2.1; Chowdhery et al., "PaLM",
    appendix B (model FLOPs utilization); Dao, "FlashAttention-2", section 4.1 (attention's products).

    Example:
        >>> base = GLMConfig.preset("base")
        >>> pairs = 4 * (512 * 513 + 410 * 409) // 2  # 4 sequences of 512 tokens, 410 of them Part A
        >>> useful_flops(base, tokens=2048, targets=408, pairs=pairs) / 1e12  # L 12, E 768, F 3072, V 30592
        1.212241895424
    """
    L, E, F = config.num_layers, config.hidden_size, config.ffn_hidden_size
    weights = tokens * L * (4 * E * E + 2 * E * F) + targets * E * config.vocab_size
    return 6 * weights + 14 * pairs * L * E


def peak_flops(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Operations in a second that `device` reaches, a multiply-add as two, measured for some tenths of one.

    A CPU, with torch's threads: float32 multiply-adds without memory; for 16 bits a large product where that
    is faster, by instructions of its own. A GPU: a large product in `dtype`.
    """
    if device.type != "cpu":
        return _product_flops(8192, device, dtype)
    arithmetic = _C.fma_peak(torch.get_num_threads()) * 1e9
    return arithmetic if dtype == torch.float32 else max(arithmetic, _product_flops(1024, device, dtype))


def _product_flops(n: int, device: torch.device, dtype: torch.dtype) -> float:
    """Of [n, n] and [n, n], the fastest of a few; the first warms up."""
    linear = ops_for("auto", device.type).linear
    x = torch.full((n, n), 0.5, device=device, dtype=dtype)
    seconds = math.inf
    for _ in range(6):
        began = time.perf_counter()
        linear(x, x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = min(seconds, time.perf_counter() - began)
    return 2 * n**3 / seconds


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, the most that tensors have held; of the CPU, the most that the process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
