"""The gallery: one page without any address, whose images exist and have texts, and whose maps can be clicked."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from tiny_subject import subject

from ssl_zoo.data.listing import OUTPUT_MARK
from ssl_zoo.plotting import Column, Figure, Ramp, Swatch
from ssl_zoo.visualization import Gallery, patch_similarities, plot_attention


class Page(HTMLParser):
    """The tags of a page, in order, with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    shown = subject()
    gallery = Gallery("tiny", {"method": "none"}, shown.names)
    gallery.add("attention", plot_attention(shown))
    gallery.add_clickable("similarity", shown)
    folder = tmp_path_factory.mktemp("gallery") / "page"
    return folder, Page(gallery.write(folder))


def test_it_has_no_address_outside_of_its_folder_and_no_library(written) -> None:
    folder, page = written
    assert "://" not in page.text and "url(" not in page.text
    assert not page.of("link") and not any("src" in script for script in page.of("script"))
    for reference in [image["src"] for image in page.of("img")] + [link["href"] for link in page.of("a")]:
        assert reference.startswith("#") or (folder / reference).is_file()


def test_every_image_has_a_text_and_every_link_a_section(written) -> None:
    _, page = written
    assert len(page.of("img")) == 3 * (1 + 1 + 4) + 3  # image, mean and four heads of three images; three to click
    assert all(image["alt"] for image in page.of("img"))
    assert {link["href"] for link in page.of("a")} == {f"#{section['id']}" for section in page.of("section")}


def test_an_image_that_several_panels_share_is_one_file(written) -> None:
    folder, page = written
    sources = [image["src"] for image in page.of("img")]
    assert len(list((folder / "images").iterdir())) == len(set(sources)) < len(sources)


def test_it_is_kept_out_of_data_and_fits_a_phone(written) -> None:
    folder, page = written
    assert (folder / OUTPUT_MARK).is_file()
    assert any(meta.get("name") == "viewport" for meta in page.of("meta"))


def test_a_clickable_map_holds_the_similarity_of_every_patch_to_every_other(written) -> None:
    _, page = written
    cards = [card for card in page.of("article") if card.get("class") == "click"]
    similarity = patch_similarities(subject())
    low = similarity.min()
    for card, expected in zip(cards, similarity, strict=True):
        assert (card["data-rows"], card["data-columns"]) == ("4", "4")
        levels = torch.tensor(list(base64.b64decode(card["data-similarity"]))).view(16, 16)
        torch.testing.assert_close(levels / 255 * (1 - low) + low, expected, atol=0.005, rtol=0)


def test_names_and_texts_are_escaped(tmp_path: Path) -> None:
    figure = Figure("<b>", [Column("<i>", torch.zeros(1, 3, 8, 8), ["<u>"])], [Swatch("<s>"), Ramp("<p>", "0", "1")])
    gallery = Gallery("<h>", {"<k>": "<v>"}, ['"quoted" & <name>.jpg'])
    gallery.add("masks", figure)
    page = Page(gallery.write(tmp_path / "page"))
    assert not {"b", "u", "s", "h", "k", "v", "name"} & {tag for tag, _ in page.tags}
    assert page.of("img")[0]["alt"] == '<i>: "quoted" & <name>.jpg. <u>'


def test_another_page_is_not_overwritten_and_a_gallery_is(tmp_path: Path) -> None:
    gallery = Gallery("tiny", {}, [])
    gallery.write(tmp_path / "page")
    gallery.write(tmp_path / "page")
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"--gallery .* is no gallery; name another folder"):
        gallery.write(tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"
