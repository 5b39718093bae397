import pytest
import torch

from glm_ext import GLM, GLMConfig, fill_tokens

from .models import EOP, SOP, logits_by_definition, model

PART_A, MASKS = [5, 1, 6, 7, 1, 8], [1, 4]


def blanks(glm, max_length=5, **options):
    return fill_tokens(glm, PART_A, MASKS, start_id=SOP, end_ids=[EOP], max_length=max_length, **options)


def blanks_without_cache(glm, max_length):
    """The same by definition: at every step the whole sequence so far goes through the model."""
    written = []
    for place in MASKS:
        fed = [SOP]
        written.append((place, fed))
        while len(fed) <= max_length:
            token = int(logits_by_definition(glm, PART_A, written).argmax())
            if token == EOP:
                break
            fed.append(token)
    return [fed[1:] for _, fed in written]


@pytest.mark.parametrize("seed", range(6))
def test_greedy_filling_is_the_definition(seed):
    glm = model(seed)
    found = blanks(glm)
    assert glm.training  # as it was before
    assert found == blanks_without_cache(glm, 5)


def test_those_models_end_blanks_by_token_and_by_length():
    lengths = {len(span) for seed in range(6) for span in blanks(model(seed))}
    assert 5 in lengths and lengths - {5}


def test_sampling_follows_its_seed():
    glm = model()
    drawn = [blanks(glm, temperature=2.0, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert any(other != drawn[0] for other in drawn[2:])


def test_the_likeliest_alone_is_greedy():
    glm = model()
    assert blanks(glm, temperature=3.0, top_k=1, seed=5) == blanks(glm)
    assert blanks(glm, temperature=1e-4, seed=5) == blanks(glm)


def test_top_k_draws_from_k_tokens():
    glm = model()
    first = {blanks(glm, temperature=50.0, top_k=2, seed=seed, max_length=1)[0][:1][0] for seed in range(40)}
    tokens, places = [*PART_A, SOP], [[*range(6), 1], [*[0] * 6, 1]]
    logits = glm.eval()(torch.tensor([tokens]), torch.tensor([places]), 6)[0, -1]
    assert first == set(logits.topk(2).indices.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length: expected 1 or more, got 0"),
        ({"max_length": 16}, "max_length: expected 1 to 15 for this model, got 16"),
        ({"temperature": -1.0}, "temperature: expected 0"),
        ({"top_k": -1}, "top_k: expected 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        blanks(model(), **options)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 0}, {"num_beams": 3}], ids=str)
def test_no_token_is_made_up(options):
    glm, unending = model(), {"max_length": 13, "no_repeat_ngram": 1, "end_ids": []}
    with pytest.raises(ValueError, match="logits: expected a token that may follow"):  # there are 12 in all
        fill_tokens(glm, PART_A, MASKS, start_id=SOP, **unending, **options)
    torch.nn.init.constant_(glm.word_embeddings.weight, torch.nan)
    with pytest.raises(ValueError, match="logits: expected finite numbers, got nan"):
        blanks(glm, **options)


def test_masks_lie_in_the_text():
    with pytest.raises(ValueError, match=r"mask_positions: expected places in the 3 tokens, got \[3\]"):
        fill_tokens(model(), [5, 1, 6], [3], start_id=SOP, end_ids=[EOP], max_length=4)


def test_a_text_is_filled_in_place():
    tokenizer_module = pytest.importorskip("glm_ext.data.tokenizer")
    from glm_ext import fill

    tokenizer = tokenizer_module.GLMTokenizer.train(["the cat sat on the mat"], vocab_size=280)
    torch.manual_seed(0)
    glm = GLM(GLMConfig(vocab_size=384, num_layers=1, hidden_size=32, num_heads=4, max_positions=64))
    filled = fill(glm, tokenizer, "the [MASK] sat [sMASK]", max_length=3)
    assert len(filled.spans) == 2
    first, second = (span if span[:1].isspace() else f" {span}" for span in filled.spans)
    assert filled.text == f"the{first} sat{second}"
