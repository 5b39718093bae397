"""Models of other projects, read and written in their own format."""

from .megatron import load_megatron

__all__ = ["load_megatron"]
