"""Vocabularies of the `tokenizers` library: trained on text, or read from the files of other models.

Every function here gives a Tokenizer that has GLM's special tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_ext.extras import require

from .files import decode
from .special import MASK_TOKENS, SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Byte-level BPE spells a byte as the Latin-1 character of that number, or, where that cannot be seen, as the
# next free one from 256 on.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = sorted(set(range(256)) - set(_VISIBLE))
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}

_SPACE = "\u2581"  # how sentencepiece spells a space
_BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")

# The order in which the public GLM models append special tokens, to GPT-2's and BERT's vocabularies ...
_APPENDED = ("sop", "eop", "cls", "mask", "sep", "unk", "gmask", "smask", "dblock")
# ... and to sentencepiece's, where one id stays unused.
_AFTER_SENTENCEPIECE = ("eos", "sep", "cls", "mask", "unk", None, "sop", "eop", "smask", "gmask", "dblock")
_UNUSED = "[UNUSED]"


def library() -> Any:
    """The tokenizers library, with its parts."""
    for part in ("decoders", "models", "normalizers", "pre_tokenizers", "trainers"):
        require(f"tokenizers.{part}", extra="train", purpose="GLMTokenizer")
    return require("tokenizers", extra="train", purpose="GLMTokenizer")


# ------------------------------------------------------------------------------------------------- training


def train(documents: Iterable[str], vocab_size: int, kind: str) -> Tokenizer:
    """See GLMTokenizer.train."""
    kinds = {"bpe": _train_bpe, "wordpiece": _train_wordpiece, "unigram": _train_unigram}
    if kind not in kinds:
        raise ValueError(f"kind: expected one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind](documents, vocab_size)


def _train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    # Every byte is a token of its own, after the special ones: any text can be encoded, none needs [UNK].
    _check_size(vocab_size, 256, "256 bytes")
    lib = library()
    tokenizer = _byte_level(lib.models.BPE())
    trainer = lib.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_added_tokens(SPECIAL_TOKENS.values()),
        initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _train_wordpiece(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    _check_size(vocab_size, 1, "a character")
    lib = library()
    tokenizer = _word_piece(lib.models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]), lowercase=False)
    trainer = lib.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=_added_tokens(SPECIAL_TOKENS.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _train_unigram(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    _check_size(vocab_size, 257, "256 bytes, and a piece")
    lib = library()
    unk = SPECIAL_TOKENS["unk"]
    special = list(SPECIAL_TOKENS.values())
    trained = _meta_space(lib.models.Unigram(), dummy_prefix=False, split=True, literal=special)
    trainer = lib.trainers.UnigramTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - 256 + 1,
        unk_token=unk,
        special_tokens=[unk],
        show_progress=False,
    )
    trained.train_from_iterator(documents, trainer)
    [_, *pieces] = json.loads(trained.to_str())["model"]["vocab"]
    rarest = min((score for _, score in pieces), default=0.0)
    vocabulary = [(unk, 0.0), *((byte, rarest - 1) for byte in _BYTE_PIECES), *map(tuple, pieces)]
    model = lib.models.Unigram(vocabulary, 0, True)
    tokenizer = _meta_space(model, dummy_prefix=False, split=True, literal=[*special, *_BYTE_PIECES])
    tokenizer.add_special_tokens(_added_tokens([unk, *special]))
    return tokenizer


def _check_size(vocab_size: int, least: int, what: str) -> None:
    least += len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size: expected at least {least} ({what} and {len(SPECIAL_TOKENS)} special tokens), "
            f"got {vocab_size}"
        )


# -------------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Tokenizer:
    """See GLMTokenizer.adopt."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; expected {_KNOWN}")
    if path.is_dir():
        named = [path / name for name in _READERS if (path / name).is_file()]
        found = sorted(path.glob("*.model")) + named
        if not found:
            raise ValueError(f"{path}: holds no vocabulary; expected {_KNOWN}")
        path = found[0]
    if path.suffix == ".model":
        return _read_sentencepiece(path)
    if path.name not in _READERS:
        raise ValueError(f"{path}: expected {_KNOWN}")
    tokenizer: Tokenizer = _READERS[path.name](path)
    return tokenizer


def read_json(path: Path) -> Tokenizer:
    """A tokenizer.json as it is."""
    try:
        tokenizer: Tokenizer = library().Tokenizer.from_file(str(path))
    except ImportError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: not a tokenizer.json of the tokenizers library: {error}") from error
    return tokenizer


def _read_any_json(path: Path) -> Tokenizer:
    tokenizer = read_json(path)
    if tokenizer.token_to_id(SPECIAL_TOKENS["pad"]) is not None:  # BERT's, whose padding ends a text too
        return _append(tokenizer, _APPENDED)
    return _append(tokenizer, ("eos", *_APPENDED))


def _read_gpt2(path: Path) -> Tokenizer:
    merges = next((file for name in _MERGES if (file := path.with_name(name)).is_file()), None)
    if merges is None:
        raise FileNotFoundError(f"{path}: expected {' or '.join(_MERGES)} beside it, found neither")
    try:
        model = library().models.BPE.from_file(str(path), str(merges))
    except ImportError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}, {merges}: not a vocabulary like GPT-2's: {error}") from error
    return _append(_byte_level(model), ("eos", *_APPENDED))


def _read_bert(path: Path) -> Tokenizer:
    try:
        words = decode(path.read_bytes()).split("\n")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    vocabulary = {word.rstrip("\r"): index for index, word in enumerate(words) if word}
    unk = SPECIAL_TOKENS["unk"]
    if unk not in vocabulary:
        raise ValueError(f"{path}: not a vocabulary like BERT's: it has no {unk}")
    plain = [word for word in vocabulary if not word.startswith("[")]
    lowercase = all(word == word.lower() for word in plain)
    model = library().models.WordPiece(vocabulary, unk_token=unk)
    return _append(_word_piece(model, lowercase), ("pad", *_APPENDED))


def _read_sentencepiece(path: Path) -> Tokenizer:
    proto = require("sentencepiece.sentencepiece_model_pb2", extra="data", purpose=f"{path}: reading it")
    lib = library()
    model = proto.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf has an error class of its own
        raise ValueError(f"{path}: not a sentencepiece model: {error}") from error
    kinds = proto.ModelProto.SentencePiece
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.type == kinds.UNKNOWN), None)
    if unknown is None:
        raise ValueError(f"{path}: not a sentencepiece model: it has no unknown piece")
    fallback = any(piece.type == kinds.BYTE for piece in model.pieces)
    no_text = (kinds.UNKNOWN, kinds.CONTROL, kinds.BYTE)
    special = set(SPECIAL_TOKENS.values())  # also where the model has it as a word of its user's
    literal = [piece.piece for piece in model.pieces if piece.type in no_text or piece.piece in special]
    if model.trainer_spec.model_type == proto.TrainerSpec.UNIGRAM:
        library_model = lib.models.Unigram(pieces, unknown, fallback)
    elif model.trainer_spec.model_type == proto.TrainerSpec.BPE:
        ids = {piece: index for index, (piece, _) in enumerate(pieces)}
        library_model = lib.models.BPE(
            ids,
            _merges(dict(pieces), set(literal)),
            unk_token=pieces[unknown][0],
            fuse_unk=True,
            byte_fallback=fallback,
        )
    else:
        raise ValueError(f"{path}: expected a unigram or BPE model, got a model of words or characters")

    rules = model.normalizer_spec
    tokenizer = _meta_space(library_model, dummy_prefix=rules.add_dummy_prefix, split=False, literal=literal)
    normalizers = []
    if rules.precompiled_charsmap:
        normalizers.append(lib.normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        normalizers += [
            lib.normalizers.Strip(),
            lib.normalizers.Replace(lib.Regex(" {2,}"), " "),
        ]
    if rules.add_dummy_prefix:
        normalizers.append(lib.normalizers.Prepend(_SPACE))
    if normalizers:
        tokenizer.normalizer = lib.normalizers.Sequence(normalizers)
    return _append(tokenizer, _AFTER_SENTENCEPIECE)


def _merges(scores: dict[str, float], literal: set[str]) -> list[tuple[str, str]]:
    """The merges of a sentencepiece BPE model: every way to make a piece of two, the best piece first."""
    merges = []
    for piece, score in scores.items():
        if piece not in literal:
            merges += [
                (-score, piece[:cut], piece[cut:])
                for cut in range(1, len(piece))
                if piece[:cut] in scores and piece[cut:] in scores
            ]
    return [(left, right) for _, left, right in sorted(merges, key=lambda merge: merge[0])]


def _append(tokenizer: Tokenizer, roles: Sequence[str | None]) -> Tokenizer:
    """Adds the special tokens of these roles in this order; those that the vocabulary has keep their id."""
    tokenizer.add_special_tokens(
        _added_tokens(_UNUSED if role is None else SPECIAL_TOKENS[role] for role in roles)
    )
    return tokenizer


def _added_tokens(names: Iterable[str]) -> list[Any]:
    """A mask takes the white space on its left with it."""
    return [
        library().AddedToken(name, lstrip=name in MASK_TOKENS, special=True, normalized=False)
        for name in names
    ]


_MERGES = ("merges.txt", "vocab.bpe")

# Of a folder the first that is there is read, after a sentencepiece model: what tells the kind of vocabulary
# comes before tokenizer.json, whose ids may be others; and that before vocab.json, since it says how words
# are split.
_READERS = {
    "vocab.txt": _read_bert,
    "tokenizer.json": _read_any_json,
    "vocab.json": _read_gpt2,
    "encoder.json": _read_gpt2,
}
_KNOWN = (
    "a tokenizer.json, GPT-2's vocab.json or encoder.json with merges.txt or vocab.bpe beside it, "
    "BERT's vocab.txt, or a sentencepiece .model"
)


# --------------------------------------------------------------------------------- the three kinds of pieces


def pieces(tokenizer: Tokenizer) -> Iterator[tuple[int, bytes]]:
    """Every id and the bytes that its piece stands for."""
    described = json.loads(tokenizer.to_str())
    kind = (described["decoder"] or {}).get("type")
    for spelling, token in tokenizer.get_vocab().items():
        if kind == "ByteLevel":
            yield token, bytes(_BYTE_OF.get(character, 0x20) for character in spelling)
        elif kind == "WordPiece":
            word = spelling.removeprefix("##") if spelling.startswith("##") else f" {spelling}"
            yield token, word.encode()
        elif byte := _BYTE_PIECE.fullmatch(spelling):
            yield token, bytes.fromhex(byte[1])
        else:
            yield token, spelling.replace(_SPACE, " ").encode()


def byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """The bytes of the tokens that stand for one where no piece does (sentencepiece's fallback), by id."""
    vocabulary = tokenizer.get_vocab()
    if not all(piece in vocabulary for piece in _BYTE_PIECES):
        return {}
    return {vocabulary[piece]: byte for byte, piece in enumerate(_BYTE_PIECES)}


def _byte_level(model: Any) -> Tokenizer:
    """Pieces are of bytes, and words are split off with the space before them."""
    lib = library()
    tokenizer: Tokenizer = lib.Tokenizer(model)
    tokenizer.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = lib.decoders.ByteLevel()
    return tokenizer


def _word_piece(model: Any, lowercase: bool) -> Tokenizer:
    """Pieces are of words, those inside a word are marked; white space is dropped."""
    lib = library()
    tokenizer: Tokenizer = lib.Tokenizer(model)
    tokenizer.normalizer = lib.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = lib.decoders.WordPiece()
    return tokenizer


def _meta_space(model: Any, *, dummy_prefix: bool, split: bool, literal: Sequence[str]) -> Tokenizer:
    """Pieces spell a space as a character. dummy_prefix: the normalizer puts one before a text.

    literal: pieces that are no text; where a text spells one, it is cut after the first character.
    """
    lib = library()
    tokenizer: Tokenizer = lib.Tokenizer(model)
    space = lib.pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never", split=split)
    if literal:
        spelled = "|".join(f"{re.escape(piece[0])}(?={re.escape(piece[1:])})" for piece in literal)
        cut = lib.pre_tokenizers.Split(lib.Regex(spelled), "merged_with_previous")
        space = lib.pre_tokenizers.Sequence([cut, space])
    tokenizer.pre_tokenizer = space
    decoders = lib.decoders
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy_prefix:
        parts.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer
