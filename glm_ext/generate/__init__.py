"""Writing with a trained model. Reads in this order: config, filters, decoder, writer, beam, fill.

Part A is encoded once; every token after it goes through the model once, with its keys and values kept.
"""

from .config import GenerationConfig
from .fill import Filled, fill, fill_all, fill_prompts, fill_tokens, generate, stream

__all__ = [
    "Filled",
    "GenerationConfig",
    "fill",
    "fill_all",
    "fill_prompts",
    "fill_tokens",
    "generate",
    "stream",
]
