"""GLM in plain torch: the peers of the end-to-end benchmark, which start from the weights of a glm_ext.GLM.

As one writes it today: nn.Linear, fused SDPA with a boolean mask, F.dropout, F.layer_norm, F.gelu, and the
loss on the gathered rows of Part B. Or with attention and loss as GLM's authors published them (2021):
scores, mask and softmax one after the other, and the loss of every row, of which a mask leaves Part B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glm_ext import GLM, Batch, GLMConfig


def attend_step_by_step(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, dropout_p: float) -> Tensor:
    scores = (q @ (k / k.shape[-1] ** 0.5).mT) * mask - 65504.0 * ~mask
    return F.dropout(scores.softmax(-1), dropout_p) @ v


class PlainBlock(nn.Module):
    def __init__(self, config: GLMConfig, as_published: bool) -> None:
        super().__init__()
        self.attend = attend_step_by_step if as_published else F.scaled_dot_product_attention
        E, hidden = config.hidden_size, config.ffn_hidden_size
        self.num_heads, self.dropout, self.attention_dropout = (
            config.num_heads,
            config.hidden_dropout,
            config.attention_dropout,
        )
        self.norm1, self.norm2 = (
            nn.LayerNorm(E, config.layer_norm_eps),
            nn.LayerNorm(E, config.layer_norm_eps),
        )
        self.qkv, self.dense = nn.Linear(E, 3 * E), nn.Linear(E, E)
        self.up, self.down = nn.Linear(E, hidden), nn.Linear(hidden, E)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = self.attend(q, k, v, mask, dropout_p=self.attention_dropout)
        x = x + F.dropout(self.dense(attended.transpose(1, 2).flatten(2)), self.dropout)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh")), self.dropout)


class PlainGLM(nn.Module):
    def __init__(self, config: GLMConfig, as_published: bool = False) -> None:
        super().__init__()
        rows = config.max_positions + 1
        self.config, self.as_published = config, as_published
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places, self.block_places = (nn.Embedding(rows, config.hidden_size) for _ in range(2))
        self.blocks = nn.ModuleList(PlainBlock(config, as_published) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def loss(self, batch: Batch) -> Tensor:
        S = batch.tokens.shape[1]
        i, j = torch.arange(S)[:, None], torch.arange(S)
        mask = ((j <= i) | (j < batch.prefix_len[:, None, None]))[:, None]  # [B, 1, S, S]
        x = (
            self.words(batch.tokens)
            + self.places(batch.positions[:, 0])
            + self.block_places(batch.positions[:, 1])
        )
        x = F.dropout(x, self.config.hidden_dropout)
        for block in self.blocks:
            x = block(x, mask)
        hidden, targets = self.norm(x).flatten(0, 1), batch.targets.flatten()
        loss_mask = batch.loss_mask.flatten()
        if self.as_published:
            losses = F.cross_entropy(F.linear(hidden, self.words.weight), targets, reduction="none")
            return (losses * loss_mask).sum() / loss_mask.sum()
        rows = loss_mask.nonzero()[:, 0]
        return F.cross_entropy(F.linear(hidden[rows], self.words.weight), targets[rows])


def plain_twin(model: GLM, as_published: bool = False) -> PlainGLM:
    """A PlainGLM with a copy of the model's weights."""
    twin = PlainGLM(model.config, as_published)
    # Both list their parameters in the same order but for the seams: names are matched by what they are.
    source = model.state_dict()
    names = {
        "words": "word_embeddings",
        "places": "transformer.position_embeddings",
        "block_places": "transformer.block_position_embeddings",
        "norm": "transformer.final_layernorm",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "qkv": "attention.query_key_value",
        "dense": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    }
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            *path, module, kind = name.split(".")
            prefix = f"transformer.layers.{path[1]}." if path else ""
            parameter.copy_(source[f"{prefix}{names[module]}.{kind}"])
    return twin
