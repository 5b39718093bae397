"""Training objectives, one file each: (tokens, rng, special ids, settings) -> Example or None (drop)."""

from .token_spans import TokenSpanSettings, token_spans

__all__ = ["TokenSpanSettings", "token_spans"]
