"""The layers of GLM as drop-in modules: parameters and shapes here, the work in glm_ext.ops.

Submodules carry the names of the public GLM checkpoints. Dropout is active in training mode only.

Shape letters: B batch, S sequence, T cached and new tokens together, H heads, D head dim, E width, F hidden.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops
from .branches import Branches
from .cache import KVCache
from .ops import auto, reference
from .ops._library import autocast_dtype
from .ops.gelu_mlp import check_choices
from .ops.reference import Lengths

# Elements of a weight in float32 and float64. On Zen 4, forward: with up to 36 rows and the weight in memory
# 1.2 to 3.6 times as fast as torch's product; with the weight in a cache from 512 x 512 on 0.9 to 3.1 times
# (one row: 0.8 to 1.5), 128 x 384 only 0.3 to 1.1 times (docs/log.md, 2026-11-29).
FUSED_LINEAR_WEIGHT = 2**18

BACKENDS = ("auto", "fused", "eager")


def ops_for(backend: str, device_type: str = "cpu") -> ModuleType:
    """What a layer runs on: "fused" kernels, "eager" plain torch, or "auto", fused where there is a kernel.

    >>> ops_for("eager").__name__
    'glm_ext.ops.reference'
    >>> ops_for("auto", "cuda").__name__
    'glm_ext.ops.auto'
    """
    if backend == "eager":
        return reference
    if backend == "auto" and device_type == "cuda":
        return auto
    if backend in BACKENDS:
        return ops
    raise ValueError(f'backend: expected "auto", "fused" or "eager", got {backend!r}')


class Layer(nn.Module):
    """What the layers share: a backend, and a dropout probability that counts in training mode only."""

    def __init__(self, *, dropout: float, backend: str) -> None:
        super().__init__()
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout: expected 0 <= p <= 1, got {dropout}")
        ops_for(backend)  # an unknown name fails here, not in forward
        self.dropout, self.backend = dropout, backend

    def ops(self, x: Tensor) -> ModuleType:
        """What computes with x, by the backend and by where x is."""
        return ops_for(self.backend, x.device.type)

    @property
    def dropout_p(self) -> float:
        return self.dropout if self.training else 0.0

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """layer(x), by the packed product where it is the faster one.

        That is in 16 bits always, else from weights of FUSED_LINEAR_WEIGHT elements on. A GPU has torch's
        library for all of them. What is not `plain` is called as it is.
        """
        if plain(layer, nn.Linear) and x.device.type == "cpu" and _packs(x, layer.weight):
            out: Tensor = self.ops(x).linear(x, layer.weight, layer.bias)
        else:
            out = layer(x)
        return out

    def add_norm(self, x: Tensor | None, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """The seam of two sublayers: (norm(r), r), r = residual + dropout(x), or residual where x is None."""
        if x is None:
            return norm(residual), residual
        if not plain(norm, nn.LayerNorm):
            residual = residual + F.dropout(x, self.dropout, self.training)
            return norm(residual), residual
        seam: tuple[Tensor, Tensor] = self.ops(x).dropout_add_layer_norm(
            x, residual, norm.weight, norm.bias, eps=norm.eps, dropout_p=self.dropout_p
        )
        return seam

    def embed(
        self, tokens: Tensor, positions: Tensor, word: nn.Module, position: nn.Module, block: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """dropout(word[token] + position[place in Part A] + block[place in the span]), [B, S, E].

        And the weight of `word`, for its second use (`ops.tied_embedding_2d`).
        """
        ids, tables = (tokens, positions[:, 0], positions[:, 1]), (word, position, block)
        if not all(plain(table, nn.Embedding) for table in tables):
            rows = [table(index) for table, index in zip(tables, ids, strict=True)]
            weight: Any = getattr(word, "weight", None)  # what took its place may have none
            return F.dropout(rows[0] + rows[1] + rows[2], self.dropout, self.training), weight
        weights = (table.weight for table in tables)
        tied: tuple[Tensor, Tensor] = self.ops(tokens).tied_embedding_2d(
            *ids, *weights, dropout_p=self.dropout_p
        )
        return tied

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}, backend={self.backend!r}"


def _packs(x: Tensor, weight: Tensor) -> bool:
    dtype = x.dtype if x.dtype == torch.float64 else autocast_dtype("cpu") or x.dtype
    if dtype in (torch.bfloat16, torch.float16):
        return True
    return dtype in (torch.float32, torch.float64) and weight.numel() >= FUSED_LINEAR_WEIGHT


def plain(layer: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether its parameters are all there is to a part: then a kernel may read them instead of calling it.

    Not so for what has taken its place (an adapter, a quantized or pruned layer), nor for one with hooks,
    with a forward of its own (as accelerate sets it), or with an option that the kernels do not know.
    """
    if type(layer) is not cls or "forward" in vars(layer):
        return False
    if layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks:
        return False
    if isinstance(layer, nn.Embedding):
        options = layer.padding_idx, layer.max_norm, layer.sparse, layer.scale_grad_by_freq
        return options == (None, None, False, False)
    if isinstance(layer, nn.LayerNorm):
        return len(layer.normalized_shape) == 1 and layer.weight is not None and layer.bias is not None
    return True


class SpanAttention(Layer):
    """Multi-head self-attention under the GLM mask (Du et al., "GLM", 2022, section 2.1).

    x [B, S, E] -> dense(span_attention(q, k, v)) [B, S, E] with [q | k | v] = query_key_value(x), each a
    third that is read in place. `dropout` falls on the attention probabilities. See `ops.span_attention` for
    who sees whom; with a cache the new tokens see what it holds, and `seq_len` counts both. `Branches` in the
    place of a cache let several Parts B share Part A. With cu_seqlens [G + 1], x [1, N, E] is G sequences end
    to end, as in `ops.span_attention_varlen`.

    >>> attention = SpanAttention(32, num_heads=4)
    >>> attention(torch.randn(2, 7, 32), prefix_len=torch.tensor([3, 5])).shape
    torch.Size([2, 7, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dropout=dropout, backend=backend)
        if num_heads < 1 or embed_dim % num_heads != 0:
            raise ValueError(f"embed_dim: expected a multiple of num_heads = {num_heads}, got {embed_dim}")
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.query_key_value = nn.Linear(embed_dim, 3 * embed_dim, bias, device, dtype)
        self.dense = nn.Linear(embed_dim, embed_dim, bias, device, dtype)

    def forward(
        self,
        x: Tensor,
        prefix_len: Lengths,
        seq_len: Lengths | None = None,
        start: Lengths | None = None,
        cache: KVCache | Branches | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        if x.dim() != 3:
            raise ValueError(f"x: expected [B, S, E], got {list(x.shape)}")
        if cu_seqlens is not None:
            if x.shape[0] != 1 or not (seq_len is None and start is None and cache is None):
                raise ValueError(
                    "cu_seqlens: expected x [1, N, E], and no seq_len, start or cache beside it, "
                    f"got x {list(x.shape)}"
                )
            return self._packed(x, prefix_len, cu_seqlens)
        packed = self.linear(x, self.query_key_value).unflatten(2, (3, self.num_heads, -1))  # [B, S, 3, H, D]
        dropout_p = self.dropout_p
        if cache is None:
            attended = self.ops(x).span_attention_qkvpacked(
                packed, prefix_len, seq_len, start=start, dropout_p=dropout_p
            )
        else:
            query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, S, D], strided views
            attended = cache.attend(
                self.ops(x), query, key, value, prefix_len, seq_len, start=start, dropout_p=dropout_p
            )
        return self.linear(attended.transpose(1, 2).flatten(2), self.dense)

    def _packed(self, x: Tensor, prefix_len: Lengths, cu_seqlens: Tensor) -> Tensor:
        """The same within each of the sequences that lie end to end in x [1, N, E]."""
        packed = self.linear(x[0], self.query_key_value).unflatten(1, (3, self.num_heads, -1))  # [N, 3, H, D]
        attended: Tensor = self.ops(x).span_attention_qkvpacked(
            packed, prefix_len, cu_seqlens=cu_seqlens, dropout_p=self.dropout_p
        )
        return self.linear(attended.flatten(1), self.dense)[None]

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, {super().extra_repr()}"


class Embedding2D(Layer):
    """dropout(word[token] + position[place in Part A] + block_position[place in the span]).

    The input of GLM (Du et al. 2022, section 2.1). tokens [B, S], positions [B, 2, S] -> [B, S, E]. Both
    position tables have num_positions rows.

    >>> embedding = Embedding2D(100, num_positions=16, embedding_dim=8)
    >>> embedding(torch.tensor([[5, 7]]), torch.tensor([[[0, 1], [0, 0]]])).shape
    torch.Size([1, 2, 8])
    """

    def __init__(
        self,
        num_embeddings: int,
        num_positions: int,
        embedding_dim: int,
        *,
        dropout: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dropout=dropout, backend=backend)
        self.word_embeddings = nn.Embedding(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self.position_embeddings = nn.Embedding(num_positions, embedding_dim, device=device, dtype=dtype)
        self.block_position_embeddings = nn.Embedding(
            num_positions, embedding_dim, device=device, dtype=dtype
        )

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        tables = self.word_embeddings, self.position_embeddings, self.block_position_embeddings
        return self.embed(tokens, positions, *tables)[0]


class GeluMLP(Layer):
    """dense_4h_to_h(gelu(dense_h_to_4h(x))), [..., E] -> [..., E] through F hidden units.

    approximate: "tanh" (as GLM) or "none" (erf).
    recompute: what backward computes again instead of keeping, "none", "activation" (keeps the input of
    GELU, not its output) or "all".

    >>> GeluMLP(8, 32)(torch.randn(5, 8)).shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        approximate: str = "tanh",
        recompute: str = "activation",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dropout=0.0, backend=backend)
        check_choices(approximate, recompute)
        self.approximate, self.recompute = approximate, recompute
        self.dense_h_to_4h = nn.Linear(in_features, hidden_features, device=device, dtype=dtype)
        self.dense_4h_to_h = nn.Linear(hidden_features, in_features, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.dense_h_to_4h, self.dense_4h_to_h
        if not (plain(first, nn.Linear) and plain(second, nn.Linear)):
            hidden = F.gelu(self.linear(x, first), approximate=self.approximate)
            return self.linear(hidden, second)
        out: Tensor = self.ops(x).gelu_mlp(
            x,
            first.weight,
            first.bias,
            second.weight,
            second.bias,
            approximate=self.approximate,
            recompute=self.recompute,
        )
        return out

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, recompute={self.recompute!r}, backend={self.backend!r}"


class GLMBlock(Layer):
    """Pre-LN transformer block: x <- x + dropout(attention(LN(x))), then x <- x + dropout(mlp(LN(x))).

    x [B, S, E] -> [B, S, E]. `dropout` falls on both sums, `attention_dropout` on the attention
    probabilities.

    A sum and the LayerNorm after it are one op, also across blocks, so in a stack a block leaves its last sum
    to the next one. Given `residual`, x is what the block before left to add to it (None: nothing), and the
    result is such a pair again:

    >>> blocks = nn.ModuleList(GLMBlock(32, 4, 128) for _ in range(2))
    >>> x = torch.randn(2, 7, 32)
    >>> pending, residual = None, x
    >>> for block in blocks:
    ...     pending, residual = block(pending, 3, residual=residual)
    >>> torch.allclose(residual + pending, blocks[1](blocks[0](x, 3), 3), atol=1e-6)
    True
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_hidden: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        layer_norm_eps: float = 1e-5,
        approximate: str = "tanh",
        recompute: str = "activation",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dropout=dropout, backend=backend)
        self.input_layernorm = nn.LayerNorm(embed_dim, layer_norm_eps, device=device, dtype=dtype)
        self.attention = SpanAttention(
            embed_dim, num_heads, dropout=attention_dropout, backend=backend, device=device, dtype=dtype
        )
        self.post_attention_layernorm = nn.LayerNorm(embed_dim, layer_norm_eps, device=device, dtype=dtype)
        self.mlp = GeluMLP(
            embed_dim,
            ffn_hidden,
            approximate=approximate,
            recompute=recompute,
            backend=backend,
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        x: Tensor | None,
        prefix_len: Lengths,
        seq_len: Lengths | None = None,
        start: Lengths | None = None,
        cache: KVCache | Branches | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        residual: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if residual is not None:
            return self._sublayers(x, residual, prefix_len, seq_len, start, cache, cu_seqlens)
        if x is None:
            raise ValueError("x: expected a tensor [B, S, E] where no residual is given, got None")
        x, residual = self._sublayers(None, x, prefix_len, seq_len, start, cache, cu_seqlens)
        return residual + F.dropout(x, self.dropout, self.training)

    def _sublayers(
        self,
        x: Tensor | None,
        residual: Tensor,
        prefix_len: Lengths,
        seq_len: Lengths | None,
        start: Lengths | None,
        cache: KVCache | Branches | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        normed, residual = self.add_norm(x, residual, self.input_layernorm)
        x = self.attention(normed, prefix_len, seq_len, start, cache, cu_seqlens)
        normed, residual = self.add_norm(x, residual, self.post_attention_layernorm)
        return self.mlp(normed), residual
