"""Documents as Markdown and as HTML."""

import re

from ssl_zoo.study.document import Command, Document, Figure, Heading, Items, Paragraph, Table

DOCUMENT = Document(
    "A < B",
    [
        Heading("Results"),
        Paragraph("See `a<b` and *this* at [there](../runs/x/)."),
        Table(["", "score, %"], [["a|b", "41.0 ± 0.5"]]),
        Items(["one", "two"]),
        Figure("plot", b"<svg/>", "What & where"),
        Figure("other", b"<svg></svg>", "Other"),
        Command("python a.py --x '<y>'"),
    ],
)


def test_html_is_self_contained_and_escapes_its_text(tmp_path):
    page, _ = DOCUMENT.write(tmp_path)
    text = page.read_text()
    assert re.findall(r'(?:src|href)="(?!data:image/svg)([^"]*)"', text) == ["../runs/x/"]
    assert "http" not in text and "<script" not in text and "@import" not in text
    assert "<title>A &lt; B</title>" in text and "<code>a&lt;b</code> and <em>this</em>" in text
    assert '<td data-label="score, %">41.0 ± 0.5</td>' in text
    assert text.count("<figure>") == 2 and text.count('<div class="plots">') == 1
    assert "What &amp; where" in text and "&#x27;&lt;y&gt;&#x27;" in text


def test_markdown_links_plots_in_a_folder_beside_it(tmp_path):
    _, page = DOCUMENT.write(tmp_path)
    text = page.read_text()
    assert text.startswith("# A < B\n\n## Results\n")
    assert r"| a\|b | 41.0 ± 0.5 |" in text
    assert "![What & where](figures/plot.svg)" in text
    assert (tmp_path / "figures" / "plot.svg").read_bytes() == b"<svg/>"
