import pytest
import torch

from glm_ext import GLM, GLMConfig, fill_tokens

SOP, EOP = 2, 3
PART_A, MASKS = [5, 1, 6, 7, 1, 8], [1, 4]


def model(seed=0):
    """Weights wide enough that the choices differ from step to step; in training mode, dropout on."""
    torch.manual_seed(seed)
    return GLM(
        GLMConfig(vocab_size=12, num_layers=2, hidden_size=32, num_heads=4, max_positions=16, init_std=0.3)
    )


def blanks(glm, max_length=5, **options):
    return fill_tokens(glm, PART_A, MASKS, start_id=SOP, end_ids=[EOP], max_length=max_length, **options)


@torch.no_grad()
def blanks_without_cache(glm, max_length):
    """The same by definition: at every step the whole sequence so far goes through the model."""
    tokens, positions = list(PART_A), [list(range(len(PART_A))), [0] * len(PART_A)]
    spans = []
    for place in MASKS:
        span, token = [], SOP
        while True:
            tokens.append(token)
            positions[0].append(place)
            positions[1].append(len(span) + 1)
            if len(span) == max_length:
                break
            token = int(glm(torch.tensor([tokens]), torch.tensor([positions]), len(PART_A))[0, -1].argmax())
            if token == EOP:
                break
            span.append(token)
        spans.append(span)
    return spans


@pytest.mark.parametrize("seed", range(6))
def test_greedy_filling_is_the_definition(seed):
    glm = model(seed)
    found = blanks(glm)
    assert glm.training  # as it was before
    assert found == blanks_without_cache(glm.eval(), 5)


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
