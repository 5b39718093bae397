"""What is measured: one case is one op at one shape, with every peer that can do the same work.

A peer is a function of no arguments that does the work once. Peers are what a torch user would write today,
at their best: fused SDPA rather than a softmax by hand, compiled where compiling helps, the loss rows
gathered where there are fewer. The work of a case is counted by a formula beside it, the same for all its
peers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_ext import ops
from glm_ext.data import load_documents
from glm_ext.ops.reference import visible

Peer = Callable[[], object]
OURS = "glm_ext"


@dataclass(frozen=True, kw_only=True)
class Case:
    op: str
    name: str  # the shape, in words
    peers: Callable[[], dict[str, Peer]]  # builds inputs and peers; called when the case is measured
    flops: float = 0.0  # floating-point operations that the result needs
    bytes: float = 0.0  # memory traffic that the result needs
    tokens: int = 0  # that a training step learns from
    shape: dict[str, float | str] = field(default_factory=dict)  # the same in numbers, for plots

    @property
    def id(self) -> str:
        return f"{self.op} {self.name}"


def rate(measured: Mapping[str, Any], seconds: float) -> str:
    """A second's tokens, useful arithmetic and its share of the peak, or needed memory traffic."""
    tokens = f"{measured['tokens'] / seconds:.0f} tokens/s, " if measured.get("tokens") else ""
    if measured["flops"]:
        gflops = measured["flops"] / seconds * 1e-9
        return f"{tokens}{gflops:.0f} GFLOP/s, {gflops / measured['peak_gflops']:.0%} of peak"
    return f"{measured['bytes'] / seconds * 1e-9:.1f} GB/s"


def _train(forward: Callable[[], Tensor | tuple[Tensor, ...]], inputs: list[Tensor]) -> Peer:
    """Forward and backward, with a gradient of ones for each result."""
    grads: list[Tensor] = []

    def step() -> object:
        out = forward()
        outputs = [out] if isinstance(out, Tensor) else list(out)
        if not grads:
            grads.extend(torch.ones_like(t) for t in outputs)
        return torch.autograd.grad(outputs, inputs, grads)

    return step


def _infer(forward: Callable[[], object]) -> Peer:
    def step() -> object:
        with torch.no_grad():
            return forward()

    return step


# -------------------------------------------------------------------------------------------------- attention


def visible_pairs(S: int, prefix: int) -> int:
    return sum(max(prefix, i + 1) for i in range(S))


def attention(
    B: int,
    H: int,
    S: int,
    D: int,
    prefix: int,
    dropout_p: float = 0.0,
    dtype: torch.dtype = torch.float32,
    backward: bool = True,
) -> Case:
    def peers() -> dict[str, Peer]:
        torch.manual_seed(0)
        packed = torch.randn(
            B, S, 3, H, D, dtype=dtype, requires_grad=backward
        )  # as the QKV projection gives it
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        # SDPA at its best: its own flag or no mask where that will do; a mask of three dimensions would send
        # it down a path 2.7 times slower.
        mask: dict[str, Any] = {"attn_mask": visible(S, S, prefix)[0]}  # [S, S]
        if prefix in (0, S):
            mask = {"is_causal": prefix == 0}
        prefix_len = torch.full((B,), prefix)

        def ours() -> Tensor:
            return ops.span_attention(q, k, v, prefix_len, dropout_p=dropout_p)

        def sdpa() -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, **mask, dropout_p=dropout_p)

        run = (lambda f: _train(f, [packed])) if backward else _infer
        found: dict[str, Peer] = {OURS: run(ours), "SDPA": run(sdpa)}
        if not backward and dropout_p == 0.0 and dtype == torch.float32:
            found["FlexAttention, compiled"] = _infer(_flex(q, k, v, prefix))
        return found

    direction = "fwd+bwd" if backward else "fwd"
    dropout = f" p={dropout_p}" if dropout_p else ""
    return Case(
        op="span_attention",
        name=f"{direction} B={B} H={H} S={S} D={D} a={prefix} {_short(dtype)}{dropout}",
        peers=peers,
        flops=(3.5 if backward else 1.0) * 4 * D * visible_pairs(S, prefix) * B * H,
        shape={
            "B": B,
            "S": S,
            "D": D,
            "prefix": prefix / S,
            "direction": direction,
            "dropout": dropout_p,
            "dtype": _short(dtype),
        },
    )


def attention_packed(H: int, D: int, budget: int) -> Case:
    """Documents of real lengths in one row of tokens, beside the same documents padded for SDPA."""
    lengths = document_lengths(budget)
    B, S = len(lengths), max(lengths)
    prefixes = [length * 4 // 5 for length in lengths]

    def peers() -> dict[str, Peer]:
        torch.manual_seed(0)
        packed = torch.randn(sum(lengths), 3, H, D, requires_grad=True)
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
        prefix_len = torch.tensor(prefixes)
        padded = torch.randn(B, S, 3, H, D, requires_grad=True)
        mask = visible(S, S, prefix_len, torch.tensor(lengths))[:, None]  # [B, 1, S, S]

        def ours() -> Tensor:
            return ops.span_attention_varlen(*packed.unbind(1), cu_seqlens, prefix_len)

        def sdpa() -> Tensor:
            return F.scaled_dot_product_attention(*padded.permute(2, 0, 3, 1, 4), mask)

        masks = [visible(n, n, prefix)[0] for n, prefix in zip(lengths, prefixes, strict=True)]

        def one_by_one() -> Tensor:
            documents = zip(packed.split(lengths), masks, strict=True)
            found = [F.scaled_dot_product_attention(*x.permute(1, 2, 0, 3), m) for x, m in documents]
            return torch.cat(found, 1)

        return {
            OURS: _train(ours, [packed]),
            "SDPA, padded": _train(sdpa, [padded]),
            "SDPA, document by document": _train(one_by_one, [packed]),
        }

    pairs = sum(visible_pairs(length, prefix) for length, prefix in zip(lengths, prefixes, strict=True))
    return Case(
        op="span_attention",
        name=f"packed fwd+bwd {B} documents of {min(lengths)}-{S}, N={sum(lengths)} H={H} D={D} f32",
        peers=peers,
        flops=3.5 * 4 * D * pairs * H,
        shape={"packed": 1, "D": D},
    )


def document_lengths(budget: int) -> list[int]:
    """Lengths, about those in tokens, of the first documents inside Python that fill the budget."""
    lengths: list[int] = []
    for text in load_documents():
        length = min(len(text) // 4, 512, budget - sum(lengths))
        if length >= 16:
            lengths.append(length)
    return lengths


def attention_sweep() -> Iterator[Case]:
    """Attention over lengths, prefix ratios and head dims: the plots of docs/performance.md."""
    for D in (64, 128):
        for S in (128, 256, 512, 1024, 2048, 4096):
            batch = max(1, 2048 // S)  # about the same work in memory at each length
            for backward in (False, True):
                yield attention(batch, 256 // D, S, D, S // 2, backward=backward)
        for prefix in (0, 256, 512, 768, 1024):
            yield attention(1, 256 // D, 1024, D, prefix)
    for S in (128, 512, 1024):
        yield attention(1, 4, S, 64, S // 2, dropout_p=0.1)
    for dtype in (torch.bfloat16, torch.float16):
        yield attention(1, 4, 1024, 64, 512, dtype=dtype)
    yield attention_packed(4, 64, budget=8192)


def _flex(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j < prefix) | (j <= i)

    S = q.shape[2]
    block_mask = create_block_mask(rule, None, None, S, S, device=str(q.device))
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=block_mask)  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------- the other ops


def gelu_mlp(N: int, E: int, hidden: int, dtype: torch.dtype = torch.float32) -> Case:
    def peers() -> dict[str, Peer]:
        torch.manual_seed(0)
        x = torch.randn(N, E, dtype=dtype, requires_grad=True)
        w1, b1 = (
            (0.02 * torch.randn(hidden, E)).to(dtype).requires_grad_(),
            torch.zeros(hidden, dtype=dtype, requires_grad=True),
        )
        w2, b2 = (
            (0.02 * torch.randn(E, hidden)).to(dtype).requires_grad_(),
            torch.zeros(E, dtype=dtype, requires_grad=True),
        )

        def eager() -> Tensor:
            return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)

        inputs = [x, w1, b1, w2, b2]
        return {
            OURS: _train(lambda: ops.gelu_mlp(x, w1, b1, w2, b2), inputs),
            "eager": _train(eager, inputs),
            "torch.compile": _train(torch.compile(eager), inputs),
        }

    return Case(
        op="gelu_mlp",
        name=f"fwd+bwd N={N} E={E} F={hidden} {_short(dtype)}",
        peers=peers,
        flops=3 * 4 * N * E * hidden,
    )


def linear(N: int, E: int, width_out: int, dtype: torch.dtype = torch.float32) -> Case:
    def peers() -> dict[str, Peer]:
        torch.manual_seed(0)
        x = torch.randn(N, E, dtype=dtype, requires_grad=True)
        weight = (0.02 * torch.randn(width_out, E)).to(dtype).requires_grad_()
        bias = torch.zeros(width_out, dtype=dtype, requires_grad=True)
        inputs = [x, weight, bias]
        return {
            OURS: _train(lambda: ops.linear(x, weight, bias), inputs),
            "F.linear": _train(lambda: F.linear(x, weight, bias), inputs),
        }

    return Case(
        op="linear",
        name=f"fwd+bwd N={N} E={E} O={width_out} {_short(dtype)}",
        peers=peers,
        flops=3 * 2.0 * N * E * width_out,
    )


def embedding_2d(N: int, E: int, V: int, P: int, dropout_p: float) -> Case:
    def peers() -> dict[str, Peer]:
        torch.manual_seed(0)
        tokens = (V * torch.rand(N) ** 3).long()  # few tokens are most of a text
        positions, blocks = torch.arange(N) % P, torch.zeros(N, dtype=torch.long)
        blocks[N * 5 // 6 :] = torch.arange(N - N * 5 // 6) % 5 + 1  # Part B is the last sixth
        tables = [torch.randn(rows, E, requires_grad=True) for rows in (V, P, P)]

        def eager() -> Tensor:
            summed = (
                F.embedding(tokens, tables[0])
                + F.embedding(positions, tables[1])
                + F.embedding(blocks, tables[2])
            )
            return F.dropout(summed, dropout_p)

        return {
            OURS: _train(
                lambda: ops.embedding_2d(tokens, positions, blocks, *tables, dropout_p=dropout_p), tables
            ),
            "eager": _train(eager, tables),
            "torch.compile": _train(torch.compile(eager), tables),
        }

    # Forward: three rows read, one written. Backward: one row read, three tables of gradients written whole.
    traffic = 4.0 * E * (N * 4 + N + V + 2 * P)
    return Case(
        op="embedding_2d", name=f"fwd+bwd N={N} E={E} V={V} f32 p={dropout_p}", peers=peers, bytes=traffic
    )


def dropout_add_layer_norm(N: int, E: int, dropout_p: float) -> Case:
    def peers() -> dict[str, Peer]:
        torch.manual_seed(0)
        x, residual = (torch.randn(N, E, requires_grad=True) for _ in range(2))
        weight, bias = torch.ones(E, requires_grad=True), torch.zeros(E, requires_grad=True)

        def eager() -> tuple[Tensor, Tensor]:
            h = residual + F.dropout(x, dropout_p)
            return F.layer_norm(h, (E,), weight, bias), h

        inputs = [x, residual, weight, bias]
        return {
            OURS: _train(
                lambda: ops.dropout_add_layer_norm(x, residual, weight, bias, dropout_p=dropout_p), inputs
            ),
            "eager": _train(eager, inputs),
            "torch.compile": _train(torch.compile(eager), inputs),
        }

    # Forward reads two matrices and writes two; backward reads three and writes two (one without dropout).
    traffic = 4.0 * N * E * (4 + 3 + (2 if dropout_p else 1))
    return Case(
        op="dropout_add_layer_norm", name=f"fwd+bwd N={N} E={E} f32 p={dropout_p}", peers=peers, bytes=traffic
    )


def linear_cross_entropy(N: int, E: int, V: int, share: float) -> Case:
    def peers() -> dict[str, Peer]:
        torch.manual_seed(0)
        hidden = torch.randn(N, E, requires_grad=True)
        weight = (0.02 * torch.randn(V, E)).requires_grad_()
        targets = torch.randint(0, V, (N,))
        mask = torch.zeros(N)
        mask[torch.randperm(N)[: round(N * share)]] = 1.0

        def eager() -> Tensor:
            loss = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
            return (loss * mask).sum() / mask.sum()

        def gathered() -> Tensor:
            rows = mask.nonzero()[:, 0]
            return F.cross_entropy(F.linear(hidden[rows], weight), targets[rows])

        inputs = [hidden, weight]
        found: dict[str, Peer] = {
            OURS: _train(lambda: ops.linear_cross_entropy(hidden, weight, targets, mask), inputs),
            "eager, all rows": _train(eager, inputs),
            "torch.compile, all rows": _train(torch.compile(eager), inputs),
        }
        if share < 1.0:
            found["eager, rows gathered"] = _train(gathered, inputs)
            found["torch.compile, rows gathered"] = _train(torch.compile(gathered), inputs)
        if share == 1.0 and hasattr(F, "linear_cross_entropy"):
            found["F.linear_cross_entropy"] = _train(
                lambda: F.linear_cross_entropy(hidden, weight, targets), inputs
            )
        return found

    rows = round(N * share)
    return Case(
        op="linear_cross_entropy",
        name=f"fwd+bwd N={N} E={E} V={V} {share:.0%} of rows f32",
        peers=peers,
        flops=3 * 2.0 * rows * E * V,
    )


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]


def all_cases() -> Iterator[Case]:
    yield attention(2, 12, 1024, 64, 512, backward=False)
    yield attention(2, 12, 1024, 64, 512)
    yield attention(2, 12, 1024, 64, 512, dropout_p=0.1)
    yield attention(1, 4, 1024, 64, 512, dtype=torch.bfloat16)
    yield attention(4, 12, 512, 64, 410)
    yield attention(1, 12, 1024, 128, 512)
    yield gelu_mlp(2048, 768, 3072)
    yield gelu_mlp(2048, 768, 3072, torch.bfloat16)
    yield linear(2048, 768, 2304)
    yield linear(2048, 768, 768)
    yield linear(2048, 768, 2304, dtype=torch.bfloat16)
    yield embedding_2d(4096, 768, 30592, 513, dropout_p=0.1)
    yield dropout_add_layer_norm(1024, 512, dropout_p=0.1)
    yield dropout_add_layer_norm(4096, 768, dropout_p=0.0)
    yield linear_cross_entropy(512, 768, 30592, share=1.0)
    yield linear_cross_entropy(2048, 768, 30592, share=0.15)
