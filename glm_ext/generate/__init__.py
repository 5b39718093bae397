"""Writing with a trained model. Reads in this order: config, filters, decoder, writer, beam, fill.

Part A is encoded once; what is written after it is fed token by token, with its keys and values kept. A beam
search of several blanks feeds the best span of each once more, for the next blank to see.
"""

from .config import GenerationConfig
from .fill import Filled, continued, fill, fill_all, fill_prompts, fill_tokens, generate, stream

__all__ = [
    "Filled",
    "GenerationConfig",
    "continued",
    "fill",
    "fill_all",
    "fill_prompts",
    "fill_tokens",
    "generate",
    "stream",
]
