"""Training objectives, one file each: (tokens, rng, special ids, settings) -> Example or None (drop)."""

from .block_mask import block_mask
from .document import DocumentSettings, document_span
from .mixture import Mixture, Objective, standard_objectives
from .sentences import SentenceSettings, find_sentences, sentence_spans
from .short import crop
from .token_spans import TokenSpanSettings, token_spans

__all__ = [
    "DocumentSettings",
    "Mixture",
    "Objective",
    "SentenceSettings",
    "TokenSpanSettings",
    "block_mask",
    "crop",
    "document_span",
    "find_sentences",
    "sentence_spans",
    "standard_objectives",
    "token_spans",
]
