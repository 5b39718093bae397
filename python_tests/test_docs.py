"""The documentation is true: its Python runs, its command lines are understood, its links lead somewhere, and
the files it names exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glm_ext.cli import COMMANDS, main
from glm_ext.config import GLMConfig
from glm_ext.data import GLMTokenizer
from glm_ext.model import GLM
from glm_ext.tasks import load_task
from glm_ext.train import Checkpoint, load_checkpoint, load_model, save_checkpoint
from glm_ext.train.finetune_config import FinetuneConfig

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(
    r"`((?:csrc|glm_ext|python_tests|benchmarks|scripts|docs|cmake)/[\w./]+|[\w.]+\.(?:md|txt|toml))`"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLANNED = re.compile(r"rms_norm|exp2\.cpp")  # what the recipes tell the reader to write
COMMAND = re.compile(r"(?:^|&&|;|\|)\s*(?:do\s+)?(?=glm-ext\s)")
INLINE = re.compile(r"`(glm-ext [a-z]+ [^`]+)`")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for given: an untrained run, and a task of one's own."""
    folder = tmp_path_factory.mktemp("folder")
    tokenizer = GLMTokenizer.train(["Once upon a time the list was long."] * 2, vocab_size=300)
    sizes = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "max_positions": 512}
    model = GLM(GLMConfig.preset("tiny", vocab_size=tokenizer.padded_vocab_size(), **sizes))
    checkpoint = Checkpoint(
        model=model.state_dict(),
        config=model.config.to_dict(),
        tokenizer=tokenizer.to_json(),
        optimizer={},
        rng=torch.get_rng_state(),
        state={"step": 0},
    )
    save_checkpoint(folder / "RUN", 0, checkpoint, keep_last=1)
    (folder / "reviews.csv").write_text("text,label\nA long list.,neg\nOnce upon a time!,pos\n")
    (folder / "reviews.yaml").symlink_to(ROOT / "benchmarks/recipes/reviews.yaml")
    for name in ("benchmarks", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda path: path.name
)
def test_python_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, top to bottom, share their names."""
    monkeypatch.chdir(folder)
    text = page.read_text()
    names: dict[str, object] = {}
    dtype = torch.get_default_dtype()
    try:
        for block in FENCED.finditer(text):
            if block[1] == "python":
                line = text.count("\n", 0, block.start(2))
                exec(compile("\n" * line + block[2], str(page), "exec"), names)
    finally:
        torch.set_default_dtype(dtype)


def code_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of shell code with their numbers: fenced or indented, continued ones joined."""
    fence: str | None = None
    begun, begin = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith("```"):
            fence = None if fence is not None else line[3:]
        elif fence in ("", "bash") or (fence is None and line.startswith("    ")):
            begin = begin if begun else number
            begun += line.removesuffix("\\")
            if not line.endswith("\\"):
                yield begin, begun
                begun = ""


def shell_words(command: str) -> list[str]:
    """The words of the first command, without redirections and comments."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if word in ("<", ">", ">>"):
            next(lexer)
        elif word in (";", "&", "&&", "|", "||"):
            break
        else:
            words.append(word)
    return words


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Every `glm-ext COMMAND ...` of a page, variables replaced: its line, and the words after glm-ext."""
    variables: dict[str, str] = {}
    for number, line in code_lines(text):
        line = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line)
        if assigned := re.fullmatch(r'\s*(\w+)="(.*)"', line) or re.match(r"\s*for (\w+) in (\S+)", line):
            variables[assigned[1]] = assigned[2]
        for found in COMMAND.finditer(line):
            yield number, shell_words(line[found.end() :])[1:]
    prose = FENCED.sub(lambda block: "\n" * block[0].count("\n"), text)
    for found in INLINE.finditer(prose):
        yield prose.count("\n", 0, found.start()) + 1, shell_words(found[1])[1:]


DOCUMENTED = [
    pytest.param(words, id=f"{page.name}:{number}")
    for page in PAGES
    if page.name != "CHANGELOG.md"
    for number, words in commands(page.read_text())
]


def test_the_lines_of_a_page_are_found() -> None:
    text = """
Say `glm-ext fill RUN` or `glm-ext`.

    for seed in 1 2; do
      same="--seed $seed"
      glm-ext pretrain $same --out "a b"   # a comment
      glm-ext fill RUN < texts.txt --seed 1 | head

```bash
cd x && glm-ext show \\
    --seed 2 && echo done; glm-ext info
```

A table:    glm-ext is no command here, but `glm-ext info --help` is one.
"""
    assert list(commands(text)) == [
        (6, ["pretrain", "--seed", "1", "--out", "a b"]),
        (7, ["fill", "RUN", "--seed", "1"]),
        (10, ["show", "--seed", "2"]),
        (10, ["info"]),
        (2, ["fill", "RUN"]),
        (14, ["info", "--help"]),
    ]
    assert {documented.values[0][0] for documented in DOCUMENTED} >= COMMANDS.keys() - {"bench", "info"}


class Understood(Exception):
    """Raised where a command, having read its options, would turn to its files."""


@pytest.fixture
def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop before they work; those of a task make it, for a model of 512 positions."""
    run = folder / "RUN"

    def stop(*arguments: object, **options: object) -> None:
        raise Understood

    def make_task(config: FinetuneConfig, *rest: object) -> None:
        if config.task != "NAME":
            model, tokenizer = load_model(run)
            load_task(config.task, tokenizer, model_config=model.config, **config.options)
        raise Understood

    for name in (
        *("pretrain.prepare", "pretrain.resumed", "prepare.prepare", "tokenizer.train"),
        *("tokenizer.GLMTokenizer.adopt", "fill.load_model", "generate.load_checkpoint", "show.read"),
        *("finetune.resumed", "evaluate._load_head", "bench.subprocess.call"),
    ):
        monkeypatch.setattr(f"glm_ext.cli.{name}", stop)
    monkeypatch.setattr("glm_ext.cli.finetune.prepare", make_task)
    monkeypatch.setattr("glm_ext.cli.evaluate.load_checkpoint", lambda path: load_checkpoint(run))
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("words", DOCUMENTED)
def test_command_lines_are_understood(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(words)
    except Understood:
        return
    except SystemExit as left:  # after --help
        code = left.code
    assert code == 0, capsys.readouterr().err


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    "line",
    [
        "pretrain --optim.rate 1",
        "finetune RUN --task rte --train a --valid b --options.max_lenght 8",
        "evaluate RUN --task rte --data a --options.max_lenght 8",
        "evaluate RUN --task rta --data a",
        "show --objective tokens",
        "fill RUN --beams 4",
    ],
)
def test_wrong_ones_would_not_be(line: str) -> None:
    assert main(line.split()) == 2


@pages
def test_named_files_exist(page: Path) -> None:
    named = {name for name in NAMED_FILE.findall(page.read_text()) if not PLANNED.search(name)}
    assert not sorted(name for name in named if not (ROOT / name).exists())


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """GitHub's anchors: the heading in lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
