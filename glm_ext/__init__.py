"""Fused GLM layers for PyTorch."""

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"glm_ext's kernels do not load ({error}). Build them for this Python: pip install -e . "
        "(needs a C++20 compiler)"
    ) from error

from . import interop, ops
from .batch import Batch, PackedBatch
from .cache import KVCache
from .config import GLMConfig
from .generate import fill, fill_tokens
from .model import GLM
from .nn import Embedding2D, GeluMLP, GLMBlock, SpanAttention

__version__ = "0.1.0"

__all__ = [
    "GLM",
    "_C",
    "Batch",
    "Embedding2D",
    "GLMBlock",
    "GLMConfig",
    "GeluMLP",
    "KVCache",
    "PackedBatch",
    "SpanAttention",
    "fill",
    "fill_tokens",
    "interop",
    "ops",
]
