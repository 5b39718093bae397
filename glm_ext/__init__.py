"""Fused GLM layers for PyTorch."""

from . import interop, ops
from .batch import Batch
from .config import GLMConfig
from .generate import fill, fill_tokens
from .model import GLM
from .nn import Embedding2D, GeluMLP, GLMBlock, KVCache, SpanAttention

__all__ = [
    "GLM",
    "Batch",
    "Embedding2D",
    "GLMBlock",
    "GLMConfig",
    "GeluMLP",
    "KVCache",
    "SpanAttention",
    "fill",
    "fill_tokens",
    "interop",
    "ops",
]
