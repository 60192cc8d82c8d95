"""A static page of figures: a folder that opens without a server, on a wide screen and on a phone."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from ssl_zoo.data.listing import OUTPUT_MARK
from ssl_zoo.io import write_atomic
from ssl_zoo.plotting import Figure, Ramp, Swatch, ramp_bytes, to_bytes
from ssl_zoo.visualization.gallery_page import CARD, CLICKABLE, FIGURE, PAGE, PANEL, SCRIPT, STYLE
from ssl_zoo.visualization.similarity import SIMILARITY_NOTE, scaled
from ssl_zoo.visualization.subject import Subject

_MAX_SIDE = 28  # patches of a side in a clickable map; finer grids are averaged, since a map has N^2 values
_MAX_PNG = 40_000  # bytes; larger panels, which are photographs, become JPEG files
PAGE_NAME = "index.html"


@dataclass
class Gallery:
    """Sections of a page, in the order in which they are added.

    Attributes:
        title: what the page is about.
        facts: what the images were made with: method, weights, sizes.
        names: of the images, one per row of every figure.
    """

    title: str
    facts: Mapping[str, str]
    names: Sequence[str]
    _sections: list[str] = field(default_factory=list)
    _links: list[tuple[str, str]] = field(default_factory=list)
    _files: dict[str, bytes] = field(default_factory=dict)
    _has_script: bool = False

    def add(self, name: str, figure: Figure) -> None:
        """Add a figure under a short name."""
        cards = []
        for number, image_name in enumerate(self.names):
            panels = []
            for column in figure.columns:
                caption = column.captions[number] if column.captions else ""
                source = self._file(to_bytes(column.images[number : number + 1])[0])
                text, alt = html.escape(caption), html.escape(f"{column.title}: {image_name}. {caption}".strip())
                panels.append(PANEL.format(source=source, alt=alt, title=html.escape(column.title), caption=text))
            cards.append(CARD.format(name=html.escape(f"{number + 1}  {image_name}"), panels="".join(panels)))
        self._section(name, figure.title, self._legend(figure.legend), figure.note, "".join(cards))

    def add_clickable(self, name: str, subject: Subject) -> None:
        """Add images whose patches can be clicked: the similarity of the patch to all others appears beside."""
        similarity, grid = _coarse_similarities(subject)
        low = similarity.min().item()
        levels = (scaled(similarity, low) * 255).round().byte().numpy()
        sources = [self._file(image) for image in to_bytes(subject.pixels)]
        ratio = f"{subject.rendering.size[1]} / {subject.rendering.size[0]}"
        cards = [
            CLICKABLE.format(
                name=html.escape(f"{number + 1}  {image_name}"),
                alt=html.escape(f"image {image_name}, with patches to click"),
                source=source,
                ratio=ratio,
                rows=grid[0],
                columns=grid[1],
                data=base64.b64encode(levels[number].tobytes()).decode(),
            )
            for number, (image_name, source) in enumerate(zip(self.names, sources, strict=True))
        ]
        title = "Similarity of patches: click or tap a patch of an image to see which patches are represented like it"
        legend = self._legend([Ramp("cosine similarity to the framed patch", f"{low:.2f}", "1")])
        self._section(name, title, legend, SIMILARITY_NOTE, f'<div class="clickable">{"".join(cards)}</div>')
        self._has_script = True

    def write(self, folder: Path) -> Path:
        """Write the page and its images into a folder, and return the page.

        A mark keeps the folder out of data that are looked for around it.

        Raises:
            ValueError: the folder has a page that is no gallery.
        """
        page = folder / PAGE_NAME
        if page.exists() and not (folder / OUTPUT_MARK).exists():
            raise ValueError(f"--gallery {folder}: {page} is there and is no gallery; name another folder")
        write_atomic(folder / OUTPUT_MARK, "Images made by ssl_zoo; this file keeps them out of data.\n")
        for name, content in self._files.items():
            write_atomic(folder / name, content)
        links = "".join(f'<a href="#{anchor}">{html.escape(name)}</a>' for anchor, name in self._links)
        facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in self.facts.items())
        colours = json.dumps(ramp_bytes(256)[:, 0].T.tolist(), separators=(",", ":"))
        script = SCRIPT.replace("COLOURS", colours) if self._has_script else ""
        title = html.escape(self.title)
        body = "".join(self._sections)
        text = PAGE.format(title=title, facts=facts, links=links, body=body, style=STYLE, script=script)
        write_atomic(page, text)
        return page

    def _section(self, name: str, title: str, legend: str, note: str, cards: str) -> None:
        anchor = name.replace(" ", "-")
        self._links.append((anchor, name))
        text = f"<p>{html.escape(note)}</p>" if note else ""
        filled = FIGURE.format(anchor=anchor, title=html.escape(title), legend=legend, note=text, cards=cards)
        self._sections.append(filled)

    def _legend(self, legend: Sequence[Swatch | Ramp]) -> str:
        entries = []
        for entry in legend:
            if isinstance(entry, Swatch):
                colour = ",".join(str(round(255 * value)) for value in entry.colour)
                key, text = f'<i style="background:rgb({colour})"></i>', entry.meaning
            else:
                stops = ",".join(f"rgb({red},{green},{blue})" for red, green, blue in ramp_bytes(9)[:, 0].T.tolist())
                key = f'<i class="ramp" style="background:linear-gradient(to right,{stops})"></i>'
                text = f"{entry.meaning}, from {entry.low} to {entry.high}"
            entries.append(f"<li>{key}{html.escape(text)}</li>")
        return f"<ul>{''.join(entries)}</ul>" if entries else ""

    def _file(self, image: UInt8[Tensor, "3 H W"]) -> str:
        """Keep an image for ``write``, once if it occurs in several figures, and return its path in the folder."""
        content, ending = _encoded(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
        name = f"images/{hashlib.blake2b(content, digest_size=8).hexdigest()}.{ending}"
        self._files[name] = content
        return name


def _encoded(image: Image.Image) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    if buffer.tell() <= _MAX_PNG:
        return buffer.getvalue(), "png"
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=92)
    return buffer.getvalue(), "jpg"


def _coarse_similarities(subject: Subject) -> tuple[Float[Tensor, "B n n"], tuple[int, int]]:
    """Return similarities of patches, or of squares of patches where there are too many for a page, and their grid."""
    features, (rows, columns) = subject.patch_features(), subject.grid
    factor = -(-max(rows, columns) // _MAX_SIDE)
    if factor > 1:
        image = features.transpose(1, 2).unflatten(2, (rows, columns))
        pooled = avg_pool2d(image, factor, ceil_mode=True, count_include_pad=False)
        rows, columns = pooled.shape[-2:]
        features = pooled.flatten(2).transpose(1, 2)
    unit = normalize(features, dim=-1)
    return (unit @ unit.transpose(1, 2)).clamp(-1, 1), (rows, columns)
