"""GLMConfig: the numbers that define a GLM, and the published sizes by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GLMConfig:
    """Sizes and rates of a GLM. A field out of range is a ValueError, a size that is no int a TypeError.

    >>> config = GLMConfig(vocab_size=1000, num_layers=2, hidden_size=64, num_heads=4, max_positions=128)
    >>> config.ffn_hidden_size
    256
    """

    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    max_positions: int  # both position tables have one row more: places run from 0 to max_positions
    ffn_hidden_size: int = 0  # 0 stands for 4 * hidden_size
    hidden_dropout: float = 0.1  # on the embedding sum and on the output of every sublayer
    attention_dropout: float = 0.1  # on the attention probabilities
    layer_norm_eps: float = 1e-5
    init_std: float = 0.02
    approximate: str = "tanh"  # of GELU; "none" is the exact erf

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "hidden_size", "num_heads", "max_positions")
        for name in (*sizes, "ffn_hidden_size"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name}: expected an int, got {getattr(self, name)!r}")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_heads != 0:
            raise ValueError(
                f"hidden_size: expected a multiple of num_heads = {self.num_heads}, got {self.hidden_size}"
            )
        if self.ffn_hidden_size < 0:
            raise ValueError(
                f"ffn_hidden_size: expected 0 (4 * hidden_size) or more, got {self.ffn_hidden_size}"
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: expected 0 <= p < 1, got {getattr(self, name)}")
        if not self.layer_norm_eps > 0.0:
            raise ValueError(f"layer_norm_eps: expected more than 0, got {self.layer_norm_eps}")
        if not self.init_std >= 0.0:
            raise ValueError(f"init_std: expected 0 or more, got {self.init_std}")
        if self.approximate not in ("tanh", "none"):
            raise ValueError(f'approximate: expected "tanh" or "none", got {self.approximate!r}')
        if self.ffn_hidden_size == 0:
            object.__setattr__(self, "ffn_hidden_size", 4 * self.hidden_size)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> GLMConfig:
        """A published size ("base", "large", "410m", ...) or "tiny", with any field replaced.

        >>> GLMConfig.preset("base", hidden_dropout=0.0).hidden_size
        768
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name], **overrides})

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GLMConfig:
        """The config of a dict such as `to_dict` gives; ValueError for names that are no field."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"GLMConfig has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        return cls(**values)


def _size(vocab: int, layers: int, width: int, heads: int, positions: int, **rest: float) -> dict[str, Any]:
    sizes = {
        "vocab_size": vocab,  # padded to a multiple of 128
        "num_layers": layers,
        "hidden_size": width,
        "num_heads": heads,
        "max_positions": positions,
    }
    return sizes | rest


# The sizes published with GLM (Du et al. 2022). tiny is for trying things out on a laptop: too small to
# overfit in the few minutes it is meant to train, hence no dropout.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _size(4096, 4, 256, 4, 256, hidden_dropout=0.0, attention_dropout=0.0),
    "base": _size(30592, 12, 768, 12, 512),
    "large": _size(30592, 24, 1024, 16, 512),
    "410m": _size(30592, 30, 1024, 16, 512),
    "515m": _size(30592, 30, 1152, 18, 512),
    "roberta-large": _size(50304, 24, 1024, 16, 512),
    "large-chinese": _size(50048, 24, 1024, 16, 1024),
    "2b": _size(50304, 36, 2048, 32, 1024),
    "10b": _size(50304, 48, 4096, 64, 1024),
    "10b-chinese": _size(50048, 48, 4096, 64, 1024),
}
