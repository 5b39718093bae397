import pytest

from glm_ext.cli import main

SUBJECTS = ["cat", "dog", "horse", "farmer", "teacher", "child", "sailor", "baker"]
VERBS = ["sees", "likes", "follows", "finds", "remembers"]
PLACES = ["garden", "house", "field", "harbour", "kitchen"]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """200 small documents of plain sentences."""
    folder = tmp_path_factory.mktemp("text")
    sentences = [
        f"The {subject} {verb} another {other} near the old {place} every single day."
        for subject in SUBJECTS
        for verb in VERBS
        for other in SUBJECTS
        for place in PLACES
    ]
    for number in range(200):
        (folder / f"{number:03}.txt").write_text("\n".join(sentences[number * 8 : number * 8 + 8]))
    return folder


@pytest.fixture(scope="session")
def small_run(text_folder):
    """Options of a run of a second or two."""
    return [
        *("--data.path", str(text_folder), "--data.vocab_size", "300", "--data.seq_length", "32"),
        "--model.overrides",
        '{"hidden_size": 32, "num_layers": 2, "num_heads": 2, '
        '"hidden_dropout": 0.1, "attention_dropout": 0.1}',
        *(
            "--batch_size",
            "4",
            "--eval_batches",
            "2",
            "--steps",
            "12",
            "--eval_every",
            "4",
            "--log_every",
            "3",
        ),
        *("--save_every", "100", "--threads", "1"),
    ]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small_run):
    """A run that went through."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["pretrain", *small_run, "--run", str(run)]) == 0
    return run
