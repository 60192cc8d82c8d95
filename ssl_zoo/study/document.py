"""Documents of a few kinds of blocks, rendered as Markdown and as one self-contained HTML page."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_zoo.io import write_atomic

_CODE, _LINK = re.compile(r"`([^`]+)`"), re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
_EMPHASIS = re.compile(r"\*([^*]+)\*")
_PLOTS = re.compile(r"(?:<figure>.*?</figure>\n?)+", re.DOTALL)


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Text with `code`, *emphasis* and [links](target)."""

    text: str


@dataclass(frozen=True)
class Items:
    """A bulleted list; its texts are formatted like a paragraph's."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; cells are formatted like paragraphs, and the first cell of a row is its heading."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Command:
    text: str


@dataclass(frozen=True)
class Figure:
    """A plot; ``name`` is its file name in the Markdown version."""

    name: str
    svg: bytes
    caption: str


Block = Heading | Paragraph | Items | Table | Command | Figure


@dataclass(frozen=True)
class Document:
    title: str
    blocks: Sequence[Block]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the self-contained ``report.html``, and ``report.md`` with its plots in ``figures/``."""
        for block in self.blocks:
            if isinstance(block, Figure):
                write_atomic(folder / "figures" / f"{block.name}.svg", block.svg)
        write_atomic(folder / "report.md", self.markdown())
        write_atomic(folder / "report.html", self.html())
        return folder / "report.html", folder / "report.md"

    def markdown(self) -> str:
        return "\n\n".join([f"# {self.title}", *map(_markdown, self.blocks)]) + "\n"

    def html(self) -> str:
        title = html.escape(self.title)
        body = "\n".join(map(_html, self.blocks))
        # Consecutive plots are shown side by side where the page is wide enough.
        body = _PLOTS.sub(lambda plots: f'<div class="plots">{plots[0]}</div>\n', body)
        return _PAGE.format(title=title, style=_STYLE, body=body)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text):
            return text
        case Items(texts):
            return "\n".join(f"- {text}" for text in texts)
        case Table(header, rows):
            lines = [header, ["---"] * len(header), *rows]
            return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        case Command(text):
            return f"```bash\n{text}\n```"
        case Figure(name, _, caption):
            return f"![{caption}](figures/{name}.svg)\n\n*{caption}*"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_inline(text)}</h2>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{_inline(text)}</li>" for text in texts) + "</ul>"
        case Table(header, rows):
            head = "".join(f"<th>{_inline(cell)}</th>" for cell in header)
            body = "\n".join(_html_row(header, row) for row in rows)
            return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        case Command(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Figure(_, svg, caption):
            data, text = base64.b64encode(svg).decode(), html.escape(caption)
            image = f'<img src="data:image/svg+xml;base64,{data}" alt="{text}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _html_row(header: Sequence[str], row: Sequence[str]) -> str:
    name, *cells = row
    columns = "".join(
        f'<td data-label="{html.escape(label)}">{_inline(cell)}</td>'
        for label, cell in zip(header[1:], cells, strict=True)
    )
    return f'<tr><th scope="row">{_inline(name)}</th>{columns}</tr>'


def _inline(text: str) -> str:
    text = _CODE.sub(r"<code>\1</code>", html.escape(text))
    return _LINK.sub(r'<a href="\2">\1</a>', _EMPHASIS.sub(r"<em>\1</em>", text))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

# On a phone every table row becomes a card, so that nothing scrolls sideways.
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 74rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
p, ul { max-width: 46rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .875em; background: #f4f4f4; border-radius: 3px; }
code { padding: 0 .2em; }
pre { padding: .6rem; white-space: pre-wrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
thead th { border-bottom: 2px solid #999; }
tbody th { font-weight: 600; min-width: 13rem; }
td { white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
figure img { width: 100%; max-width: 36rem; height: auto; }
figcaption { font-size: .875rem; color: #444; }
@media (max-width: 40rem) {
  thead { display: none; }
  table, tbody, tr, th, td { display: block; }
  tbody tr { border: 1px solid #ddd; border-radius: 6px; padding: .5rem .7rem; margin-bottom: .6rem; }
  tbody th, tbody td { border: 0; min-width: 0; padding: .1rem 0; }
  td { display: flex; justify-content: space-between; gap: 1rem; text-align: right; white-space: normal;
    overflow-wrap: anywhere; }
  td::before { content: attr(data-label); color: #555; text-align: left; flex: 0 0 auto; max-width: 60%; }
}
"""
