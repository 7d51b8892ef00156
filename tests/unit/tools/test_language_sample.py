"""The sample for language reviews covers every kind of text, and a seed always draws the same sample."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools.language_sample import identifiers, main, sentences

MODULE = '''"""The first sentence of a module. Its second sentence."""
# A comment that explains why
# this constant is large.
LIMIT = 3  # noqa: this directive is not prose
parser.add_argument("--x", help="the number of things")
def shown(self, value, an_argument):
    """Returns the value that is shown."""
'''
PAGE = """# A page about some things

One sentence in a paragraph. Another sentence follows it here.

- An item of a list with words

| a table cell with at least six words | short |
| --- | --- |

```sh
not a sentence of this page
```
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "ingest").mkdir()
    (tmp_path / "ingest" / "module.py").write_text(MODULE)
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "Makefile").write_text("# A comment in a Makefile, too.\nall:\n")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_every_kind_of_text_is_sampled(repository: Path):
    """Docstrings, comments, help texts, paragraphs, list items and table cells are split into sentences.

    Code is not sampled.
    """
    assert sorted(sentences(repository)) == [
        ("Makefile", "A comment in a Makefile, too."),
        ("ingest/module.py", "A comment that explains why this constant is large."),
        ("ingest/module.py", "Returns the value that is shown."),
        ("ingest/module.py", "The first sentence of a module."),
        ("ingest/module.py", "the number of things"),
        ("page.md", "A page about some things"),
        ("page.md", "An item of a list with words"),
        ("page.md", "Another sentence follows it here."),
        ("page.md", "One sentence in a paragraph."),
        ("page.md", "a table cell with at least six words"),
    ]
    assert identifiers(repository) == [
        ("ingest/module.py", name) for name in ("LIMIT", "an_argument", "shown", "value")
    ]


def test_a_seed_draws_the_same_sample_again(repository: Path, capsys: pytest.CaptureFixture[str]):
    """Two runs with the same seed print the same lists, and the seed itself."""
    printed = []
    for _ in range(2):
        main(["--seed", "7", "--sentences", "3", "--identifiers", "2"], repository)
        printed.append(capsys.readouterr().out)

    assert printed[0] == printed[1]
    assert printed[0].startswith("seed 7\n1. [")
    assert len(printed[0].splitlines()) == 6
