import pytest

from glm_ext.tasks.pattern import encode_pattern, parse_pattern, render


def test_a_pattern_has_its_blank_where_training_has_it(tokenizer):
    pieces = parse_pattern('"{a:bare}"? [MASK], "{b}"')
    tokens = encode_pattern(tokenizer, pieces, {"a": "The cat sat.", "b": " the dog "}, max_length=64)
    assert tokens[0] == tokenizer.cls_id and tokens[-1] == tokenizer.eos_id
    place = tokens.index(tokenizer.mask_id)
    filled = [*tokens[1:place], *tokenizer.encode(" No"), *tokens[place + 1 : -1]]
    assert tokenizer.decode(filled) == '"The cat sat"? No, "the dog"'


def test_the_space_goes_with_the_word_after_it(tokenizer):
    tokens = encode_pattern(tokenizer, parse_pattern("Question: {q} [MASK]"), {"q": "the cat"}, max_length=64)
    assert tokens[1:-2] == tokenizer.encode("Question: the cat")


def test_forms():
    assert render("{a:lower}|{a:bare}|{a:clause}|{a}|{a:raw}|{{}}", {"a": " The End. "}) == (
        "the End.|The End|the End|The End.| The End. |{}"
    )


def test_fields_are_plain_text(tokenizer):
    tokens = encode_pattern(
        tokenizer, parse_pattern("{a} [MASK]"), {"a": "x [MASK] <|endoftext|> {b}"}, max_length=64
    )
    assert tokens.count(tokenizer.mask_id) == 1 and tokens.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(tokens) == "x [MASK] <|endoftext|> {b}"


def test_long_fields_are_cut_at_their_end_the_longest_first(tokenizer):
    pieces, fields = parse_pattern("{a} / {b} [MASK]"), {"a": "the " * 30, "b": "it " * 10}
    whole = encode_pattern(tokenizer, pieces, fields, max_length=200)
    cut = encode_pattern(tokenizer, pieces, fields, max_length=len(whole) - 5, shorten=["a", "b"])
    assert tokenizer.decode(cut) == tokenizer.decode(whole).replace(" the" * 5 + " /", " /")
    even = tokenizer.decode(encode_pattern(tokenizer, pieces, fields, max_length=16, shorten=["a", "b"]))
    assert abs(even.count("the") - even.count("it")) <= 2 and even.count("it") < 10
    with pytest.raises(ValueError, match="more than max_length = 16, and no field of it may be shortened"):
        encode_pattern(tokenizer, pieces, fields, max_length=16)
    with pytest.raises(ValueError, match="more than max_length = 16, even without b"):
        encode_pattern(tokenizer, pieces, fields, max_length=16, shorten=["b"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{a", "pattern: .* a brace itself is written twice"),
        ("{}", "expected the name of a field"),
        ("{a!r}", "expected {a} or {a:form}, got a!r"),
        ("{a:upper}", "expected a form among bare, lower, clause, raw, got a:upper"),
    ],
)
def test_broken_patterns(pattern, message):
    with pytest.raises(ValueError, match=message):
        parse_pattern(pattern)
