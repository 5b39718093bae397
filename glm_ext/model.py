"""GLM: autoregressive blank infilling with one transformer (Du et al., "GLM", ACL 2022).

Part A of a sequence, the text with its blanks, sees itself both ways; Part B, the blanks' contents, sees all
of Part A and its own past. Every token has two positions, and the vocabulary matrix is both the first and the
last layer.

Shape letters: B batch, S sequence, E width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch, PackedBatch
from .branches import Branches
from .cache import KVCache
from .config import GLMConfig
from .nn import GLMBlock, Layer
from .ops._library import autocast_dtype, readable
from .ops.reference import Lengths


class Transformer(Layer):
    """All of GLM between the two uses of the vocabulary matrix: positions, blocks, final LayerNorm.

    Returns the hidden states, and that matrix for its second use (see `GLM.hidden_and_head`).
    """

    def __init__(
        self,
        config: GLMConfig,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dropout=config.hidden_dropout, backend=backend)
        rows, width = config.max_positions + 1, config.hidden_size
        self.position_embeddings = nn.Embedding(rows, width, device=device, dtype=dtype)
        self.block_position_embeddings = nn.Embedding(rows, width, device=device, dtype=dtype)
        self.layers = nn.ModuleList(
            GLMBlock(
                width,
                config.num_heads,
                config.ffn_hidden_size,
                dropout=config.hidden_dropout,
                attention_dropout=config.attention_dropout,
                layer_norm_eps=config.layer_norm_eps,
                approximate=config.approximate,
                backend=backend,
                device=device,
                dtype=dtype,
            )
            for _ in range(config.num_layers)
        )
        self.final_layernorm = nn.LayerNorm(width, config.layer_norm_eps, device=device, dtype=dtype)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        word_embeddings: nn.Module,
        prefix_len: Lengths,
        seq_len: Lengths | None = None,
        start: Lengths | None = None,
        cache: Sequence[KVCache | Branches] | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        tables = word_embeddings, self.position_embeddings, self.block_position_embeddings
        residual, head = self.embed(tokens, positions, *tables)
        pending = None
        for i, layer in enumerate(self.layers):
            layer_cache = None if cache is None else cache[i]
            pending, residual = layer(
                pending, prefix_len, seq_len, start, layer_cache, cu_seqlens, residual=residual
            )
        return self.add_norm(pending, residual, self.final_layernorm)[0], head


class GLM(nn.Module):
    """The model. Parameter names are those of the public checkpoints, see `interop.load_megatron`.

    backend: "fused" kernels, "eager" plain torch, or "auto". On device="meta" nothing is allocated; after
    `to_empty(device=...)` call `reset_parameters()`.

    >>> config = GLMConfig(vocab_size=50, num_layers=2, hidden_size=32, num_heads=4, max_positions=16)
    >>> model = GLM(config)
    >>> tokens = torch.tensor([[11, 2, 13, 3, 12]])  # 11 [MASK] 13 | <sop> 12
    >>> positions = torch.tensor([[[0, 1, 2, 1, 1], [0, 0, 0, 1, 2]]])
    >>> model(tokens, positions, prefix_len=3).shape
    torch.Size([1, 5, 50])
    """

    def __init__(
        self,
        config: GLMConfig,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, GLMConfig):
            raise TypeError(f"config: expected a GLMConfig, got {type(config).__name__}")
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, device=device, dtype=dtype)
        self.transformer = Transformer(config, backend=backend, device=device, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights ~ N(0, init_std), over sqrt(2 L) for those that write to the residual; biases 0, LN 1."""
        std = self.config.init_std
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "layernorm" in name:
                parameter.fill_(1.0)
            elif name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight")):
                parameter.normal_(0.0, std / (2 * self.config.num_layers) ** 0.5)
            else:
                parameter.normal_(0.0, std)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        prefix_len: Lengths,
        seq_len: Lengths | None = None,
        *,
        start: Lengths | None = None,
        cache: Sequence[KVCache | Branches] | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, S, V] (packed: [N, V]) of what `hidden` returns."""
        return self.logits(
            self.hidden(
                tokens, positions, prefix_len, seq_len, start=start, cache=cache, cu_seqlens=cu_seqlens
            )
        )

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        prefix_len: Lengths,
        seq_len: Lengths | None = None,
        *,
        start: Lengths | None = None,
        cache: Sequence[KVCache | Branches] | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, S, E] after the final LayerNorm.

        tokens [B, S] and positions [B, 2, S] are int64 (or int32): the place in Part A, and the place in the
        span (0 in Part A). prefix_len is the length of Part A, seq_len of Part A and B without padding, start
        the first token after left padding: ints, or int tensors [B]. With a cache (`new_cache`) the tokens
        follow those that it holds; `[Branches(...)] * num_layers` in its place lets several Parts B share one
        Part A. TypeError and ValueError for arguments that do not fit together or into the tables.

        With cu_seqlens [G + 1], G sequences lie end to end, as in PackedBatch: tokens [N], positions [2, N],
        prefix_len [G] -> [N, E]; seq_len, start and cache stay None.
        """
        return self.hidden_and_head(
            tokens, positions, prefix_len, seq_len, start=start, cache=cache, cu_seqlens=cu_seqlens
        )[0]

    def hidden_and_head(
        self,
        tokens: Tensor,
        positions: Tensor,
        prefix_len: Lengths,
        seq_len: Lengths | None = None,
        *,
        start: Lengths | None = None,
        cache: Sequence[KVCache | Branches] | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`hidden`, and the vocabulary matrix [V, E] for the loss of those states.

        It is for one `linear_cross_entropy` and nothing else: the gradient of the embedding is added to the
        one that comes from there, where it lies.
        """
        if cu_seqlens is not None:
            return self._hidden_packed(tokens, positions, prefix_len, cu_seqlens, (seq_len, start, cache))
        self._check(tokens, positions)
        for name, lengths in (("prefix_len", prefix_len), ("seq_len", seq_len), ("start", start)):
            _check_lengths(name, lengths, tokens.shape[0])
        out: tuple[Tensor, Tensor] = self.transformer(
            tokens, positions, self.word_embeddings, prefix_len, seq_len, start, cache
        )
        return out

    def _hidden_packed(
        self,
        tokens: Tensor,
        positions: Tensor,
        prefix_len: Lengths,
        cu_seqlens: Tensor,
        others: tuple[object, ...],
    ) -> tuple[Tensor, Tensor]:
        if any(other is not None for other in others):
            raise ValueError("cu_seqlens: expected no seq_len, start or cache beside it")
        if tokens.dim() != 1 or positions.dim() != 2:
            raise ValueError(
                "tokens, positions: with cu_seqlens expected [N] and [2, N], "
                f"got {list(tokens.shape)} and {list(positions.shape)}"
            )
        self._check(tokens[None], positions[None])
        _check_lengths("prefix_len", prefix_len, cu_seqlens.shape[0] - 1)
        out, head = self.transformer(
            tokens[None],
            positions[None],
            self.word_embeddings,
            prefix_len,
            cu_seqlens=cu_seqlens,
        )
        return out[0], head

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., E] -> [..., V], by the vocabulary matrix that also embeds."""
        weight = self.word_embeddings.weight
        # With up to 36 rows about 1 to 6 times as fast as torch's: docs/log.md, 2026-11-29.
        if hidden.device.type == "cpu":
            out: Tensor = self.transformer.ops(hidden).linear(hidden, weight)
            return out
        return F.linear(hidden, weight)

    def loss(self, batch: Batch) -> Tensor:
        """sum(cross-entropy * loss_mask) / sum(loss_mask); rows of mask 0 never meet the vocabulary.

        A PackedBatch has the loss of the same examples padded.
        """
        hidden, head = self.hidden_and_head(
            batch.tokens,
            batch.positions,
            batch.prefix_len,
            batch.seq_len,
            cu_seqlens=batch.cu_seqlens if isinstance(batch, PackedBatch) else None,
        )
        ops = self.transformer.ops(hidden)
        loss: Tensor = ops.linear_cross_entropy(hidden, head, batch.targets, batch.loss_mask)
        return loss

    def new_cache(self, batch_size: int, capacity: int) -> list[KVCache]:
        """Room for `capacity` tokens per sequence in every layer, for decoding under torch.no_grad().

        Under autocast it holds autocast's dtype, in which keys and values come.
        """
        weight, config = self.word_embeddings.weight, self.config
        dtype = weight.dtype
        if dtype != torch.float64:
            dtype = autocast_dtype(weight.device.type) or dtype
        return [
            KVCache.allocate(
                batch_size,
                config.num_heads,
                capacity,
                config.hidden_size // config.num_heads,
                device=weight.device,
                dtype=dtype,
            )
            for _ in range(config.num_layers)
        ]

    def num_parameters(self) -> int:
        """How many numbers the model learns; the tied vocabulary matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        return f"{self.num_parameters():,} parameters"

    def _check(self, tokens: Tensor, positions: Tensor) -> None:
        for name, ids in (("tokens", tokens), ("positions", positions)):
            if ids.dtype not in (torch.int64, torch.int32):
                raise TypeError(f"{name}: expected int64 or int32, got {ids.dtype}")
        if tokens.dim() != 2:
            raise ValueError(
                f"tokens: expected [B, S], got {list(tokens.shape)}; one sequence is tokens[None]"
            )
        B, S = tokens.shape
        if positions.shape != (B, 2, S):
            got = list(positions.shape)
            raise ValueError(
                f"positions: expected {[B, 2, S]} (place in Part A, place in the span), got {got}"
            )
        if readable(tokens, positions) and tokens.numel() > 0:
            _check_range("tokens", tokens, self.config.vocab_size, "is this the tokenizer of the model?")
            hint = "shorten the text or raise max_positions"
            _check_range("positions", positions, self.config.max_positions + 1, hint)


@contextmanager
def inference(model: GLM) -> Iterator[None]:
    """Evaluation mode without gradients, and the mode of before at the end."""
    was_training = model.training
    if was_training:  # setting the mode walks all modules, so not at every token where it is off
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()


def _check_range(name: str, ids: Tensor, rows: int, hint: str) -> None:
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= rows:
        raise ValueError(f"{name}: expected values from 0 to {rows - 1}, got {low} to {high}; {hint}")


def _check_lengths(name: str, lengths: Lengths | None, batch_size: int) -> None:
    if not isinstance(lengths, Tensor):
        return
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"{name}: expected an int or an integer tensor, got {lengths.dtype}")
    if lengths.shape != (batch_size,):
        raise ValueError(
            f"{name}: expected an int or [{batch_size}], one per sequence, got {list(lengths.shape)}"
        )
