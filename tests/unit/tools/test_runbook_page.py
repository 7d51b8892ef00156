"""Tests how the runbook is converted to a web page."""

from __future__ import annotations

import pytest

from tools.runbook_page import to_html


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("### ReplaysLag\n*Symptom:* slow", '<h3 id="replayslag">ReplaysLag</h3>\n<p><em>Symptom:</em> slow</p>'),
        ("1. one\n   more\n2. two", "<ol>\n<li>one more</li>\n<li>two</li>\n</ol>"),
        ("`<b> *x*` **bold**", "<p><code>&lt;b&gt; *x*</code> <strong>bold</strong></p>"),
        ("[Lag](#replayslag), [page](docs/x.md)", '<p><a href="#replayslag">Lag</a>, page</p>'),
        ("| a | b |\n| --- | --- |\n| 1 | `2` |", "<table>\n<tr><th>a</th><th>b</th></tr>\n"
         "<tr><td>1</td><td><code>2</code></td></tr>\n</table>"),
        ("<script>x</script>", "<p>&lt;script&gt;x&lt;/script&gt;</p>"),
    ],
)  # fmt: skip
def test_markdown_of_the_runbook_becomes_html(markdown: str, html: str):
    """The Markdown used in the runbook becomes HTML, and everything else is escaped."""
    assert to_html(markdown) == html
