"""Every citation resolves: paths, links, anchors, modules, tests and decision records, in code and in docs.

After a file has been moved, the test fails for every place that still cites the old path.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP_FOLDERS = ("ingest", "tasks", "tools", "benchmarks", "tests", "docs", "deploy")
PACKAGES = ("ingest", "tasks", "tools", "benchmarks", "tests")
CODE = {".py", ".js", ".sql", ".yml", ".yaml", ".toml", ".acl"}
SKIPPED_FOLDERS = {"vendor", "recordings", "__pycache__", "node_modules"}
THIS_FILE = Path(__file__).resolve()

PATH = re.compile(
    rf"(?<![\w./-])(?:\./)?((?:{'|'.join(TOP_FOLDERS)})/[\w./*-]*[\w*/])(::\w+)?(#[\w-]+)?(?![\w{{])"
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w./{<-])([a-z_][\w/]*\.(?:py|md|sql))\b(?!\.)")
DOTTED = re.compile(rf"(?<![\w./-])((?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+)")
NAME_IN_FILE = re.compile(r"`([\w.]+)`(?: and `([\w.]+)`)? in `([\w/]+\.py)`|`([\w/]+\.py)` \(`([\w.]+)`\)")
RECORD = re.compile(r"\b[Dd]ecisions? (\d{3})\b")
# The name of a design document that is older than the decision records and is not in the repository.
OLD_RECORD_NAME = re.compile(r"(?<![\w#-])(D[1-9]\d?|DESIGN)(?![\w-])")


@dataclass(frozen=True, slots=True)
class Text:
    """A part of a file that may contain citations, with its location."""

    path: Path
    line: int
    words: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def files() -> list[Path]:
    """Returns all files whose citations are checked."""
    at_top = [
        path for path in ROOT.iterdir() if path.suffix in CODE | {".md"} or path.name in ("Makefile", "Dockerfile")
    ]
    below = [path for room in TOP_FOLDERS for path in (ROOT / room).rglob("*") if path.suffix in CODE | {".md"}]
    found = [*at_top, *below, ROOT / ".ci" / "run"]
    return sorted(
        path for path in found if path.is_file() and not SKIPPED_FOLDERS & set(path.parts) and path != THIS_FILE
    )


@cache
def names_in(path: Path) -> frozenset[str]:
    """Returns the names that a module defines or imports at its top level, and all its functions, classes and
    methods.
    """
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            found |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return frozenset(found)


@cache
def anchors_in(path: Path) -> frozenset[str]:
    """Returns the anchors that GitHub generates for a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    found: list[str] = []
    for heading in headings:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return frozenset(found)


@cache
def all_paths() -> frozenset[str]:
    return frozenset("/" + path.relative_to(ROOT).as_posix() for path in files())


def texts(path: Path) -> Iterator[Text]:
    """Returns the comments and strings of a Python file, or every line of another file.

    Strings in tests are excluded, because they name things that do not exist.
    """
    if path.suffix == ".py" and path.is_relative_to(ROOT / "tests"):
        yield from prose(path)
        return
    source = path.read_text()
    if path.suffix != ".py":
        yield from (Text(path, number, line) for number, line in enumerate(source.splitlines(), 1))
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            first = token.start[0]
            yield from (Text(path, first + below, line) for below, line in enumerate(token.string.splitlines()))


def prose(path: Path) -> Iterator[Text]:
    """Returns the comments and docstrings of Python files. Other strings may name files that do not exist."""
    if path.suffix != ".py":
        yield from texts(path)
        return
    source = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(path, token.start[0], token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node) and isinstance(first, ast.Expr):
                for below, line in enumerate(ast.get_docstring(node, clean=False).splitlines()):  # type: ignore[union-attr]
                    yield Text(path, first.lineno + below, line)


def broken_paths(text: Text) -> Iterator[str]:
    """Yields the cited paths, relative to the repository root, that do not exist. A module may be cited without
    its extension.

    `docs/runbook.md#replayshalted`, `tests/e2e/test_demo.py::test_x`, `deploy/*/*.yml`, `tasks/wire`
    """
    for cited, test, anchor in PATH.findall(re.sub(r"https?://\S+", "", text.words)):
        if not next(ROOT.glob(cited.rstrip("/")), None) and not (ROOT / f"{cited}.py").exists():
            yield cited
        elif test and test[2:] not in names_in(ROOT / cited):
            yield cited + test
        elif anchor and cited.endswith(".md") and anchor[1:] not in anchors_in(ROOT / cited):
            yield cited + anchor


def broken_links(text: Text) -> Iterator[str]:
    """Returns links such as `[words](page.md#heading)` that do not resolve from the page that contains them."""
    for target in LINK.findall(text.words):
        if re.match(r"[a-z]+:", target):
            continue
        page, _, anchor = target.partition("#")
        there = (text.path.parent / page).resolve() if page else text.path
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors_in(there)):
            yield target


def broken_files(text: Text) -> Iterator[str]:
    """Returns cited files, such as `core/ledger.py` or `test_x.py`, that do not match the end of any file's
    path.
    """
    for cited in FILE.findall(re.sub(r"https?://\S+", "", text.words)):
        if not any(path.endswith("/" + cited) for path in all_paths()) and not (ROOT / cited).exists():
            yield cited


def broken_names(text: Text) -> Iterator[str]:
    """Returns cited names, such as `tasks.stored.read_replay` or `python -m tools.gameday.run`, that do not
    exist.
    """
    for cited in DOTTED.findall(re.sub(r"https?://\S+", "", text.words)):
        parts = cited.split(".")
        for depth in range(len(parts), 0, -1):
            place = ROOT.joinpath(*parts[:depth])
            module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if module.exists():
                if depth < len(parts) and parts[depth] not in names_in(module):
                    yield cited
                break


def broken_holders(text: Text) -> Iterator[str]:
    """Returns citations such as "`complete` in `tasks/flush.py`" whose file does not contain the name."""
    for first_name, second_name, holder, place, name in NAME_IN_FILE.findall(text.words):
        path = ROOT / (holder or place)
        if path.exists():
            yield from (
                f"{cited} in {path.name}"
                for cited in (first_name, second_name, name)
                if cited and not held(cited, path)
            )


def held(cited: str, path: Path) -> bool:
    return all(part in names_in(path) for part in cited.split("."))


def broken_records(text: Text) -> Iterator[str]:
    """Yields the cited decision records that do not exist, and names of design documents that are older than the
    decision records.
    """
    for number in RECORD.findall(text.words):
        if not next((ROOT / "docs/decisions").glob(f"{number}-*.md"), None):
            yield f"decision {number}"
    yield from OLD_RECORD_NAME.findall(text.words)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_citation_resolves(path: Path):
    """Every citation in comments, strings, docs and deployment files resolves."""
    broken = [f"{text}: {cited}" for text in texts(path) for cited in (*broken_paths(text), *broken_records(text))]
    for text in prose(path):
        found = [*broken_files(text), *broken_names(text), *broken_holders(text)]
        if path.suffix == ".md":
            found += broken_links(text)
        broken += [f"{text}: {cited}" for cited in found]
    assert broken == []


@pytest.mark.parametrize(
    "words",
    [
        "see docs/decisions/999-nothing.md",
        "see docs/runbook.md#no-such-heading",
        "tests/unit/test_citations.py::test_nothing_of_the_kind",
        "ingest/nothing/*.py",
        "decision 999 says so",
        "as D" + "9 has it",
        "the DES" + "IGN has it",
    ],
)
def test_a_broken_citation_is_found(words: str):
    """A broken citation of each kind is found, whatever its position."""
    text = Text(ROOT / "README.md", 1, words)

    assert [*broken_paths(text), *broken_records(text)]


@pytest.mark.parametrize(
    "words",
    [
        "`core/nothing.py`",
        "ingest.core.nothing",
        "tasks.stored.nothing",
        "[a](docs/nothing.md)",
        "[a](README.md#nothing)",
    ],
)
def test_a_broken_citation_is_found_in_prose(words: str):
    """Broken citations are found in prose, whether they consist of the last part of a file's path, a name in a
    module, or a link.
    """
    text = Text(ROOT / "README.md", 1, words)

    assert [*broken_files(text), *broken_names(text), *broken_holders(text), *broken_links(text)]


def test_valid_citations_are_accepted():
    """Citations of every kind whose targets exist are accepted."""
    words = (
        "docs/decisions/014-same-cut.md docs/runbook.md#erase-a-replay deploy/*/*.yml decision 014 "
        "tests/unit/test_architecture.py::test_the_path_of_a_message_has_no_repetition ingest.core.parse.parse "
        "tasks.stored.read_replay [a](docs/rows.md) [b](ARCHITECTURE.md#terms) MD5 3D "
        "`core/ledger.py` `Staging.report` in `tasks/staging.py` https://example.org/tasks/nothing.py"
    )
    text = Text(ROOT / "README.md", 1, words)

    found = (broken_paths, broken_records, broken_files, broken_names, broken_holders, broken_links)
    assert [cited for check in found for cited in check(text)] == []
