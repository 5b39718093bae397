"""What a user asks for: blanks filled, texts continued, as text or as token ids."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..model import GLM
from .beam import beam_search
from .config import GenerationConfig
from .writer import Request, write

if TYPE_CHECKING:
    from ..data.cloze import Prompt
    from ..data.tokenizer import GLMTokenizer


class Filled(NamedTuple):
    """A text with its blanks filled, and what went into each blank, left to right."""

    text: str
    spans: list[str]


def fill(
    model: GLM,
    tokenizer: GLMTokenizer,
    text: str,
    config: GenerationConfig | None = None,
    *,
    order: Sequence[int] | None = None,
    allow_special: bool = False,
    **changes: Any,
) -> Filled:
    """Fills every [MASK], [sMASK] and [gMASK] of a text; what is filled later sees what was before.

    config: the settings; changes: settings by name (max_length=8, top_p=0.9, ...), alone or on top of it.
    order: the numbers of the blanks, from 0, in the order of filling; left to right by default.
    allow_special: read other special tokens in the text as such; by default they are plain text.

    ValueError if the text has no blank, too many, or does not fit into the model.
    """
    orders = None if order is None else [order]
    return fill_all(model, tokenizer, [text], config, orders=orders, allow_special=allow_special, **changes)[
        0
    ]


def fill_all(
    model: GLM,
    tokenizer: GLMTokenizer,
    texts: Sequence[str],
    config: GenerationConfig | None = None,
    *,
    orders: Sequence[Sequence[int]] | None = None,
    allow_special: bool = False,
    **changes: Any,
) -> list[Filled]:
    """`fill` of several texts in one batch; each gets what it would get alone, to rounding."""
    from ..data.cloze import encode_prompt

    limit = model.config.max_positions
    prompts = [encode_prompt(tokenizer, text, limit, allow_special=allow_special) for text in texts]
    written = fill_prompts(model, tokenizer, prompts, orders, GenerationConfig.of(config, changes))
    return [
        _insert(text, [tokenizer.decode(span) for span in spans])
        for text, spans in zip(texts, written, strict=True)
    ]


def generate(
    model: GLM,
    tokenizer: GLMTokenizer,
    prompt: str = "",
    config: GenerationConfig | None = None,
    *,
    mask: str = "[gMASK]",
    **changes: Any,
) -> str:
    """What the model writes after a prompt, or out of nothing; a space that parts the two comes with it.

    The prompt is plain text; its white space at the end is no part of it, see `continued`. mask: "[gMASK]"
    for a long continuation, "[sMASK]" for sentences. Settings and errors as in `fill`.
    """
    from ..data.cloze import encode_continuation

    encoded = encode_continuation(tokenizer, prompt, model.config.max_positions, mask=mask)
    [[span]] = fill_prompts(model, tokenizer, [encoded], None, GenerationConfig.of(config, changes))
    return tokenizer.decode([*encoded.tokens, *span])[len(tokenizer.decode(encoded.tokens)) :]


def stream(
    model: GLM,
    tokenizer: GLMTokenizer,
    prompt: str = "",
    config: GenerationConfig | None = None,
    *,
    mask: str = "[gMASK]",
    **changes: Any,
) -> Iterator[str]:
    """`generate` piece by piece, as soon as it is written: the pieces joined are what generate returns.

    A character whose bytes are several tokens comes whole. ValueError with beam search, which knows nothing
    for certain until its end.
    """
    from ..data.cloze import encode_continuation

    settings = GenerationConfig.of(config, changes)
    if settings.num_beams > 1:
        raise ValueError("num_beams: a beam search cannot be streamed; expected 1, or use generate")
    encoded = encode_continuation(tokenizer, prompt, model.config.max_positions, mask=mask)
    requests = _requests(model, [(encoded.tokens, encoded.mask_positions)], None, settings)
    tokens = write(model, requests, config=settings, **_ids(model, tokenizer))
    return _pieces(tokenizer, encoded.tokens, (written.token for written in tokens))


def continued(prompt: str, pieces: Iterable[str]) -> Iterator[str]:
    """A prompt, then what `generate` or `stream` wrote after it.

    >>> "".join(continued("The cat", [" sat", "."])), "".join(continued("The end.\\n", ["Or not."]))
    ('The cat sat.', 'The end.\\nOr not.')
    """
    text = prompt.rstrip()
    yield text
    rest = iter(pieces)
    yield _spaced(prompt[len(text) :], next(rest, ""))
    yield from rest


def fill_tokens(
    model: GLM,
    tokens: Sequence[int],
    mask_positions: Sequence[int],
    config: GenerationConfig | None = None,
    *,
    start_id: int,
    end_ids: Collection[int],
    order: Sequence[int] | None = None,
    **changes: Any,
) -> list[list[int]]:
    """What the model writes into each blank of Part A, in the order of mask_positions.

    The generation of Du et al. 2022, section 2.1. tokens is Part A, mask_positions the places of its mask
    tokens. Each blank starts with start_id and ends with one of end_ids, which is not returned, or after
    max_length tokens. Settings and order as in `fill`.

    >>> from glm_ext import GLM, GLMConfig
    >>> model = GLM(GLMConfig(vocab_size=20, num_layers=1, hidden_size=16, num_heads=2, max_positions=16))
    >>> [span] = fill_tokens(model, [5, 1, 6], [1], start_id=2, end_ids=[3], max_length=4)
    >>> len(span) <= 4
    True
    """
    settings = GenerationConfig.of(config, changes)
    orders = None if order is None else [order]
    requests = _requests(model, [(tokens, mask_positions)], orders, settings)
    return _fill_requests(
        model, requests, [mask_positions], orders, settings, start_id=start_id, end_ids=end_ids
    )[0]


def fill_prompts(
    model: GLM,
    tokenizer: GLMTokenizer,
    prompts: Sequence[Prompt],
    orders: Sequence[Sequence[int]] | None,
    config: GenerationConfig,
) -> list[list[list[int]]]:
    """`fill_all` on encoded texts: the tokens of every blank of every prompt, blanks from left to right.

    orders: as in `fill_all`, None for left to right. The tokenizer says what starts and ends a blank, and
    which tokens are no text. ValueError as in `fill`.
    """
    texts = [(prompt.tokens, prompt.mask_positions) for prompt in prompts]
    requests = _requests(model, texts, orders, config)
    masks = [prompt.mask_positions for prompt in prompts]
    return _fill_requests(model, requests, masks, orders, config, **_ids(model, tokenizer))


def _fill_requests(
    model: GLM,
    requests: Sequence[Request],
    mask_positions: Sequence[Sequence[int]],
    orders: Sequence[Sequence[int]] | None,
    config: GenerationConfig,
    **ids: Any,
) -> list[list[list[int]]]:
    """The span of every blank, blanks from left to right again."""
    spans: list[list[list[int]]] = [[[] for _ in places] for places in mask_positions]
    numbers = orders or [range(len(places)) for places in mask_positions]
    if config.num_beams > 1:
        for text, blanks in enumerate(beam_search(model, requests, config=config, **ids)):
            for number, hypotheses in zip(numbers[text], blanks, strict=True):
                spans[text][number] = hypotheses[0].span
    else:
        for written in write(model, requests, config=config, **ids):
            spans[written.text][numbers[written.text][written.blank]].append(written.token)
    return spans


def _requests(
    model: GLM,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    orders: Sequence[Sequence[int]] | None,
    config: GenerationConfig,
) -> list[Request]:
    """Tokens and mask positions of each text -> what is to be written; ValueError for what cannot be."""
    limit = model.config.max_positions
    if config.max_length >= limit:
        raise ValueError(f"max_length: expected 1 to {limit - 1} for this model, got {config.max_length}")
    if orders is not None and len(orders) != len(texts):
        raise ValueError(f"orders: expected one for each of {len(texts)} texts, got {len(orders)}")
    requests = []
    for text, (tokens, places) in enumerate(texts):
        if any(not 0 <= place < len(tokens) for place in places):
            raise ValueError(
                f"mask_positions: expected places in the {len(tokens)} tokens, got {list(places)}"
            )
        if len(places) > config.max_blanks:
            raise ValueError(
                f"the text has {len(places)} blanks, more than max_blanks = {config.max_blanks}; fill it in "
                "parts, or raise max_blanks"
            )
        order = range(len(places)) if orders is None else orders[text]
        if sorted(order) != list(range(len(places))):
            raise ValueError(f"order: expected each of 0 to {len(places) - 1} once, got {list(order)}")
        requests.append(Request(tokens, [places[number] for number in order]))
    return requests


def _ids(model: GLM, tokenizer: GLMTokenizer) -> dict[str, Any]:
    """What starts a blank, what ends it, and what it cannot hold: special tokens, rows that pad the table."""
    ends = {tokenizer.eop_id, tokenizer.eos_id}
    padding = range(tokenizer.vocab_size, model.config.vocab_size)
    return {
        "start_id": tokenizer.sop_id,
        "end_ids": ends,
        "banned_ids": {*tokenizer.ids, *padding} - ends,
    }


def _insert(text: str, spans: Sequence[str]) -> Filled:
    from ..data.special import MASK_TOKENS

    remaining = iter(spans)

    def replace(blank: re.Match[str]) -> str:
        return _spaced(blank[1], next(remaining))

    return Filled(re.sub(rf"(\s*)(?:{'|'.join(map(re.escape, MASK_TOKENS))})", replace, text), list(spans))


def _spaced(space: str, span: str) -> str:
    """A blank swallows the white space on its left: it comes back unless the span brings its own."""
    return span if span[:1].isspace() else space + span


def _pieces(tokenizer: GLMTokenizer, before: Sequence[int], tokens: Iterator[int]) -> Iterator[str]:
    """The text of tokens as it goes on from those before: some vocabularies know no space at a beginning."""
    written = list(before)
    shown = tokenizer.decode(written)
    for token in tokens:
        written.append(token)
        text = tokenizer.decode(written)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    if rest := tokenizer.decode(written)[len(shown) :]:
        yield rest
