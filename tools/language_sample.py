"""Draws sentences and identifiers of this repository at random, for a review of their language.

    python -m tools.language_sample --seed 7     prints 100 sentences and 50 identifiers, each with its file

Sentences come from help texts, documentation, docstrings and comments; identifiers are the names of functions,
classes, parameters and constants. The same seed on the same commit prints the same lists.
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import subprocess
import time
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = 100
IDENTIFIERS = 50
WORDS_MIN = 4
TABLE_CELL_WORDS_MIN = 6
COMMENT_WORDS_MIN = 5
PARAMETER_CHARACTERS_MIN = 4
IDENTIFIER_PATHS = ("ingest", "tasks", "tools", "benchmarks", "tests/kit")
HASH_COMMENTS = frozenset((".yml", ".yaml", ".toml", ".sh"))
HELP_KEYWORDS = frozenset(("help", "description", "epilog", "title"))
DIRECTIVES = ("noqa", "type: ignore")
_SENTENCE_END = re.compile(r'(?<=[.!?:])\s+(?=[A-Z`"(])')
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_CODE_BLOCK = re.compile(r"```.*?```", re.DOTALL)
_LIST_ITEM = re.compile(r"(?m)^\s*(?:[-*]|\d+\.)\s+")
_HASH_COMMENT = re.compile(r"\s*#(?!!)\s?(.*)")

Sample = tuple[str, str]
"""The path of a file, and a sentence or an identifier from it."""


def tracked_files(root: Path) -> list[str]:
    """Returns the paths of all files in version control, except recordings and third-party files."""
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.split() if not path.startswith("tests/recordings") and "vendor" not in path]


def sentences(root: Path) -> list[Sample]:
    """Returns every sentence of the repository that has enough words to be judged."""
    found: list[Sample] = []
    for path in tracked_files(root):
        name, suffix = Path(path).name, Path(path).suffix
        if suffix == ".py":
            texts = _python_sentences((root / path).read_text())
        elif suffix == ".md":
            texts = _markdown_sentences((root / path).read_text())
        elif suffix in HASH_COMMENTS or name in ("Makefile", "Dockerfile"):
            texts = _comment_sentences((root / path).read_text())
        else:
            continue
        found += [(path, text) for text in texts]
    return found


def identifiers(root: Path) -> list[Sample]:
    """Returns the name of every function, class, parameter and constant of the code, once per file, sorted."""
    found = set()
    for path in tracked_files(root):
        if path.endswith(".py") and path.startswith(IDENTIFIER_PATHS):
            for node in ast.walk(ast.parse((root / path).read_text())):
                found |= {(path, name) for name in _names(node) if not name.startswith("__")}
    return sorted(found)


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.arg) and len(node.arg) >= PARAMETER_CHARACTERS_MIN and node.arg != "self":
        yield node.arg
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id.isupper():
                yield target.id


def _split(text: str, words_min: int = WORDS_MIN) -> Iterator[str]:
    for paragraph in _PARAGRAPH_END.split(text):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if len(sentence.split()) >= words_min:
                yield sentence


def _python_sentences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _split(ast.get_docstring(node) or "")
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                value = keyword.value
                if (
                    keyword.arg in HELP_KEYWORDS
                    and isinstance(value, ast.Constant)
                    and isinstance(value.value, str)
                ):
                    yield from _split(value.value)
    block: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("#!"):
            block.append(token.string.lstrip("#").strip())
        elif token.type != tokenize.NL and block:
            yield from _block_sentences(block)
            block = []


def _block_sentences(block: list[str]) -> Iterator[str]:
    for sentence in _split(" ".join(block), COMMENT_WORDS_MIN):
        if not any(directive in sentence for directive in DIRECTIVES):
            yield sentence


def _comment_sentences(text: str) -> Iterator[str]:
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        matched = _HASH_COMMENT.match(line)
        if matched:
            block.append(matched[1])
        elif block:
            yield from _block_sentences(block)
            block = []


def _markdown_sentences(text: str) -> Iterator[str]:
    for paragraph in _PARAGRAPH_END.split(_CODE_BLOCK.sub("", text)):
        lines = [line.strip() for line in paragraph.splitlines()]
        if any(line.startswith("|") for line in lines):
            for line in lines:
                for cell in line.strip("|").split("|"):
                    if len(cell.split()) >= TABLE_CELL_WORDS_MIN:
                        yield " ".join(cell.split())
            continue
        for item in _LIST_ITEM.split(paragraph):
            yield from _split(item.strip().lstrip("# "))


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Prints both lists."""
    parser = argparse.ArgumentParser(prog="python -m tools.language_sample", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the draw; default: the time")
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="number of sentences")
    parser.add_argument("--identifiers", type=int, default=IDENTIFIERS, help="number of identifiers")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}")
    for drawn, count in ((sentences(root), options.sentences), (identifiers(root), options.identifiers)):
        for number, (path, text) in enumerate(random.Random(options.seed).sample(drawn, count), 1):
            print(f"{number}. [{path}] {text}")


if __name__ == "__main__":
    main()
