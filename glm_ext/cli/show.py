"""glm-ext show: a training example as text in the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glm_ext.cli.arguments import parse_arguments
from glm_ext.cli.errors import UserError, user_errors
from glm_ext.data import (
    SPECIAL_TOKENS,
    Example,
    ExampleBatches,
    GLMTokenizer,
    Objective,
    SentenceSettings,
    TokenDocuments,
    TokenSpanSettings,
    encode_documents,
    is_store,
    load_documents,
    open_store,
    standard_objectives,
)
from glm_ext.data.tokenizer import expect_utf8
from glm_ext.extras import require
from glm_ext.train.plot_sample import SampleView, plot_sample, span_colour, view_sample
from glm_ext.train.settings import command_parser

_DESCRIPTION = """Draws a sample as the model sees it: Part A and Part B, the attention mask, both positions,
inputs and targets. With no options: a piece of the documentation inside Python."""

_OBJECTIVES = ("token", "document", "sentence", "single")
_TITLES = {
    "token": "Token spans",
    "document": "Document level",
    "sentence": "Sentence level",
    "single": "A single span",
}
_MAX_TOKENS = 64  # more do not make a legible picture
_VOCAB_SIZE = 16384  # large enough that most words are one token


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        options = parse(arguments)
        tokenizer, documents = read(options)
        example = make_example(tokenizer, documents, options)
        view = view_sample(example, word_labels(tokenizer), sop=tokenizer.sop_id, eop=tokenizer.eop_id)
        picture = plot_sample(view, Path(options.out), _TITLES[options.objective])
    print_sample(view)
    print(f"\n{picture}")
    return 0


def parse(arguments: Sequence[str]) -> Any:
    parser = command_parser("glm-ext show", _DESCRIPTION)
    parser.add_argument("--text", type=str | None, default=None, help="a text of your own")
    parser.add_argument("--objective", type=str, default="token", help=", ".join(_OBJECTIVES))
    parser.add_argument("--seed", type=int, default=0, help="which piece of text, which spans")
    parser.add_argument(
        "--ratio", type=float, default=0.15, help="part of the text in token spans or sentences"
    )
    parser.add_argument("--length", type=int, default=24, help="tokens of a piece of the corpus")
    parser.add_argument(
        "--path", type=str | None, default=None, help="text or token store; null: the text inside Python"
    )
    parser.add_argument("--run", type=str | None, default=None, help="run folder whose tokenizer to use")
    parser.add_argument("--out", type=str, default="sample.png", help="where the picture goes")
    options = parse_arguments(parser, arguments)
    if options.objective not in _OBJECTIVES:
        raise UserError(f"objective: expected one of {', '.join(_OBJECTIVES)}, got {options.objective!r}")
    if not 8 <= options.length <= _MAX_TOKENS:
        raise UserError(f"length: expected 8 to {_MAX_TOKENS} tokens, got {options.length}")
    if options.seed < 0:
        raise UserError(f"seed: expected 0 or more, got {options.seed}")
    if Path(options.out).is_dir() or not Path(options.out).parent.is_dir():
        raise UserError(f"out: expected a file in a folder that exists, got {options.out}")
    objective_settings(options)
    expect_utf8(options.text or "")
    return options


def read(options: Any) -> tuple[GLMTokenizer, TokenDocuments | None]:
    """The tokenizer, and the corpus where the text is to come from it; nothing is read without need."""
    if options.path is not None and is_store(options.path):
        if options.run is not None:
            raise UserError(f"run: {options.path} has a tokenizer of its own; leave out --run")
        store = open_store(options.path, verify=False)
        return store.tokenizer, store.documents
    tokenizer = None if options.run is None else GLMTokenizer.load(options.run)
    if tokenizer and options.text is not None:
        return tokenizer, None
    documents = load_documents(options.path)
    tokenizer = tokenizer or GLMTokenizer.train(documents, _VOCAB_SIZE)
    return tokenizer, encode_documents(tokenizer, documents) if options.text is None else None


def objective_settings(options: Any) -> dict[str, Any]:
    return {
        "token": TokenSpanSettings(ratio=options.ratio),
        "sentence": SentenceSettings(ratio=options.ratio),
    }


def make_example(tokenizer: GLMTokenizer, documents: TokenDocuments | None, options: Any) -> Example:
    """An example of the text given, or of a piece of the corpus."""
    objectives = standard_objectives(tokenizer.pieces(), **objective_settings(options))
    objective: Objective = objectives[options.objective]
    if documents is not None and options.text is None:
        batches = ExampleBatches(
            documents=documents,
            ids=tokenizer.ids,
            batch_size=1,
            max_length=options.length,
            seed=options.seed,
            objective=objective,
        )
        return batches.sample(0, 0)
    tokens = np.array([tokenizer.cls_id, *tokenizer.encode(options.text), tokenizer.eos_id])
    if len(tokens) > _MAX_TOKENS:
        raise UserError(f"text: {len(tokens)} tokens; a picture holds {_MAX_TOKENS}, give a shorter one")
    rng = np.random.default_rng(options.seed)
    # Lengths are drawn anew where they do not fit: short texts are common here.
    drawn = (objective(tokens, rng, tokenizer.ids) for _ in range(100))
    example = next((example for example in drawn if example is not None), None)
    if example is None:
        raise UserError(
            f"text: {len(tokens)} tokens hold no blank at ratio {options.ratio}; give a longer one"
        )
    return example


def word_labels(tokenizer: GLMTokenizer) -> list[str]:
    """A short printable word for every token id: white space that leads is left out, a byte alone is hex."""
    labels = []
    for piece in tokenizer.pieces():
        try:
            word = piece.decode()
        except UnicodeDecodeError:
            word = piece.hex()
        word = word.strip(" ").replace("\n", "↵") or "␣"
        labels.append(word if word.isprintable() else word.encode("unicode_escape").decode())
    for name, spelling in SPECIAL_TOKENS.items():
        token = getattr(tokenizer.ids, name)
        labels[token] = spelling if spelling.startswith("[") else f"‹{name}›"
    return labels


def print_sample(view: SampleView) -> None:
    """A row a token: input, positions, what it sees, target."""
    rich_console, rich_table, rich_text = (
        require(f"rich.{name}", extra="train") for name in ("console", "table", "text")
    )
    example, sees = view.example, view.sees
    text = rich_text.Text()
    before = -1
    for label, number in [*zip(view.text, view.text_span, strict=True), ("", -1)]:
        if number != before and before >= 0:
            text.append(f"]{before + 1}", span_colour(before))
        if label and text:
            text.append(" ")
        if number != before and number >= 0:
            text.append("[", span_colour(number))
        text.append(label, span_colour(number) if number >= 0 else "")
        before = number

    table = rich_table.Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("input", "place", "in span", "sees", "target"):
        table.add_column(name, justify="right" if name in ("place", "in span") else "left", no_wrap=True)
    for row in range(len(example)):
        style = span_colour(view.span[row]) if view.span[row] >= 0 else ""
        grid = rich_text.Text()
        for column in range(len(example)):
            seen = bool(sees[row, column])
            colour = span_colour(view.span[column]) if view.span[column] >= 0 else "bright_black"
            grid.append("■" if seen else "·", colour if seen else "bright_black")
        cells = [view.inputs[row], *map(str, example.positions[:, row])]
        target = view.targets[row] if example.loss_mask[row] > 0 else ""
        if row == example.prefix_len:
            table.add_section()
            table.add_row("")
        styled = [rich_text.Text(cell, style) for cell in cells]
        table.add_row(*styled, grid, rich_text.Text(target, style))
    console = rich_console.Console(highlight=False, width=max(100, 60 + len(example)))
    console.print(text, "", table, sep="\n", soft_wrap=True)
