"""glm-ext fill and glm-ext generate, on a model of a few steps."""

import io
import os
import signal
import subprocess
import sys

import pytest

from glm_ext.cli import fill as fill_command
from glm_ext.cli import main
from glm_ext.generate import fill, fill_all, generate
from glm_ext.train.load import load_model


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation") / "run"
    assert main(["pretrain", *small_run, "--run", str(folder)]) == 0
    return folder


@pytest.fixture
def glm_ext(capsys):
    """glm_ext(command, arguments...) -> (exit code, what was printed, what was complained about)."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


TEXT = "The [MASK] sees another [MASK] near the old house."


@pytest.mark.parametrize("arguments", [["fill", "RUN"], ["--help"], ["info"]])
def test_a_closed_pipe_ends_a_command_quietly(run, arguments):
    """As in `glm-ext fill RUN < many.txt | head -1`."""
    arguments = [str(run) if argument == "RUN" else argument for argument in arguments]
    read, write = os.pipe()
    os.close(read)
    child = subprocess.run(
        [sys.executable, "-m", "glm_ext.cli", *arguments],
        input=f"{TEXT}\n" * 3,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (child.returncode, child.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("order", ["1,0", "[1, 0]"])
def test_blanks_are_filled_in_the_order_asked_for(glm_ext, run, order):
    code, printed, _ = glm_ext("fill", run, TEXT, "--max_length", 5, "--order", order)
    assert code == 0
    assert printed == fill(*load_model(run), TEXT, max_length=5, order=[1, 0]).text + "\n"


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 2}, {"temperature": 1.0, "top_p": 0.9, "seed": 4}],
)
def test_fill_is_the_python_function(glm_ext, run, settings):
    options = [f"--{name}={value}" for name, value in settings.items()]
    code, printed, _ = glm_ext("fill", run, TEXT, "--max_length", 5, *options)
    assert code == 0
    assert printed == fill(*load_model(run), TEXT, max_length=5, **settings).text + "\n"


@pytest.mark.parametrize("option", [["--allow_special"], ["--allow_special", "true"]])
def test_special_tokens_are_read_where_asked_for(glm_ext, run, option):
    text = f"[SEP] {TEXT}"
    code, printed, _ = glm_ext("fill", run, "--max_length", 5, *option, text)
    assert code == 0
    assert printed == fill(*load_model(run), text, max_length=5, allow_special=True).text + "\n"


def test_fill_reads_lines_from_a_pipe(glm_ext, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TEXT}\n\nThe cat [MASK].\n"))
    code, printed, _ = glm_ext("fill", run, "--max_length", 5)
    model = load_model(run)
    expected = [fill(*model, text, max_length=5).text for text in (TEXT, "The cat [MASK].")]
    assert code == 0 and printed.splitlines() == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("no blank\n"))
    code, _, complaint = glm_ext("fill", run)
    assert code == 2 and "line 1: no blank to fill in 'no blank'" in complaint


def test_lines_from_a_pipe_are_filled_in_batches_and_draw_by_their_number(glm_ext, run, monkeypatch):
    sizes = []

    def counted(model, tokenizer, texts, *args, **kwargs):
        sizes.append(len(texts))
        return fill_all(model, tokenizer, texts, *args, **kwargs)

    monkeypatch.setattr(fill_command, "fill_all", counted)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TEXT}\n\n" * 20))
    code, printed, _ = glm_ext("fill", run, "--max_length", 4, "--temperature", 2, "--seed", 3)
    expected = [
        text for text, _ in fill_all(*load_model(run), [TEXT] * 20, max_length=4, temperature=2, seed=3)
    ]
    assert code == 0 and len(set(expected)) == 20
    assert printed == "".join(f"{text}\n" for text in expected)
    assert sum(sizes) == 20 and max(sizes) == 16


def test_a_bad_line_costs_no_other(glm_ext, run, monkeypatch):
    lines = [TEXT, "no blank", TEXT, "", "a [MASK] or a [MASK] " + "word " * 300, TEXT, "one [MASK]"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    settings = {"max_length": 4, "temperature": 2.0, "seed": 3}
    options = [f"--{name}={value}" for name, value in settings.items()]
    code, printed, complaint = glm_ext("fill", run, *options, "--order", "1,0")
    model = load_model(run)
    expected = [fill(*model, TEXT, **settings | {"seed": 3 + i}, order=[1, 0]).text for i in (0, 2, 4)]
    assert code == 2 and printed == "".join(f"{text}\n" for text in expected)
    first, second, third = complaint.splitlines()
    assert first.startswith("glm-ext: line 2: no blank to fill in 'no blank'")
    assert second.startswith("glm-ext: line 5: the text has ")
    assert third == "glm-ext: line 7: order: expected each of 0 to 0 once, got [1, 0]"


def test_what_is_wrong_for_every_line_is_told_once(glm_ext, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TEXT}\n" * 3))
    code, printed, complaint = glm_ext("fill", run, "--max_length", 5000)
    assert (code, printed) == (2, "")
    assert complaint.startswith("glm-ext: max_length: expected 1 to ") and complaint.count("\n") == 1


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_line_that_is_not_utf8_is_named(glm_ext, run, monkeypatch, errors):
    piped = io.BytesIO(f"{TEXT}\n\n".encode() + b"a \xff [MASK]\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(piped, encoding="utf-8", errors=errors))
    code, printed, complaint = glm_ext("fill", run, "--max_length", 5)
    assert code == 2 and printed.count("\n") == 1
    assert complaint.startswith(r"glm-ext: line 3: not UTF-8 at character 2 ('\udcff')")


def test_fill_talks_on_a_terminal(glm_ext, run, monkeypatch):
    terminal = io.StringIO(f"no blank\n{TEXT}\n\nnever read [MASK]\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("builtins.input", lambda prompt: terminal.readline().rstrip("\n"))
    code, printed, _ = glm_ext("fill", run, "--max_length", 5)
    asks, complaint, filled = printed.splitlines()
    assert code == 0 and "[sMASK]" in asks and "no blank to fill in" in complaint
    assert filled == fill(*load_model(run), TEXT, max_length=5).text


@pytest.mark.parametrize(
    "arguments",
    [
        ["fill", "RUN", "--max_length", 3, TEXT],
        ["fill", "--max_length=3", "RUN", TEXT],
        ["fill", "--max_length", 3, "--allow_special", "false", "--", "RUN", TEXT],
    ],
)
def test_a_text_may_follow_the_options(glm_ext, run, arguments):
    code, printed, complaint = glm_ext(*[run if argument == "RUN" else argument for argument in arguments])
    assert (code, complaint) == (0, "") and printed == fill(*load_model(run), TEXT, max_length=3).text + "\n"


def test_a_text_may_begin_with_a_dash(glm_ext, run):
    text = "-- The cat [MASK]."
    for arguments in (["--max_length", 3, text], ["--max_length", 3, "--", "--cat [MASK]"]):
        assert glm_ext("fill", run, *arguments)[0] == 0


@pytest.mark.parametrize("prompt", [[], ["The cat sees"]])
def test_generate_is_the_python_function(glm_ext, run, prompt):
    code, printed, _ = glm_ext("generate", run, *prompt, "--seed", 2, "--min_length", 5, "--max_length", 9)
    written = generate(
        *load_model(run), *prompt, seed=2, min_length=5, max_length=9, temperature=0.8, top_p=0.95
    )
    assert code == 0 and written and printed == "".join(prompt) + written + "\n"


def test_generate_with_beams(glm_ext, run):
    code, printed, _ = glm_ext(
        "generate", run, "The cat", "--num_beams", 3, "--mask", "[sMASK]", "--max_length", 31
    )
    written = generate(*load_model(run), "The cat", mask="[sMASK]", num_beams=3, max_length=31)
    assert code == 0 and printed == f"The cat{written}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fill", "RUN", "no blank"], "no blank to fill in 'no blank': write [MASK]"),
        (["fill", "RUN", TEXT, "--order", "[0]"], "order: expected each of 0 to 1 once, got [0]"),
        (["fill", "RUN", TEXT, "--order", "1;0"], "order: expected numbers of blanks, as in 1,0, got '1;0'"),
        (["fill", "RUN", TEXT, "--seed", "x"], "seed: expected int or null, got x"),
        (["fill", "RUN", TEXT, "--seed", 2**63], "seed: expected a number in [0, 2**63)"),
        (["fill", "RUN", TEXT, "--temperature", "1e-45"], "temperature: expected 0 (greedy), or 1e-6 to 1e6"),
        (["fill", "RUN", TEXT, "--top_q", "0.5"], "did you mean 'top_"),
        (["generate", "RUN", "--temperatur", "0.5"], "did you mean 'temperature'"),
        (["generate", "RUN", "--temperatur", "0.5", "a text"], "did you mean 'temperature'"),
        (["fill", "RUN", TEXT, "another"], "unrecognized arguments: another"),
        (["fill", "RUN", TEXT, "--seed"], "argument --seed: expected one argument"),
        (["fill", "--seed", "3"], "the following arguments are required: run"),
        (["fill", "RUN", TEXT, "--top_p", "2"], "top_p: expected 0 < top_p <= 1, got 2.0"),
        (["fill", "RUN", TEXT, "--max_length", "5000"], "for this model, got 5000"),
        (["generate", "RUN", "word " * 2000], "(max_positions); shorten it"),
        (["generate", "RUN", "--mask", "MASK"], "mask: expected one of [MASK]"),
        (["generate", "/no/such/run"], "/no/such/run"),
        (["fill", "RUN", "a [MASK] \udcff"], "not UTF-8 at character 9"),
        (["generate", "RUN", "abc \udcff"], "not UTF-8 at character 4"),
    ],
)
def test_mistakes_are_one_line(glm_ext, run, arguments, message):
    code, _, complaint = glm_ext(*[run if argument == "RUN" else argument for argument in arguments])
    assert code == 2 and message in complaint and complaint.count("\n") == 1
