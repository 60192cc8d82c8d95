"""The documentation builds as a site without warnings, loads nothing from elsewhere, and has a place for every part."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from ssl_zoo.config.schema import sections
from ssl_zoo.plugins import discover
from ssl_zoo.registry import REGISTRIES

for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
    pytest.importorskip(package, reason="the site needs Python 3.11 and pip install -e '.[docs]'")

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; strict, so that a broken link or an unknown name in an API page is an error."""
    folder = tmp_path_factory.mktemp("site")
    # A proxy that nobody answers: a build that fetched something would fail.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, str]:
    return {str(path.relative_to(site)): path.read_text() for path in sorted(site.rglob("*.html"))}


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[str, str]):
    assert {name: found for name, text in pages.items() if (found := _loaded_from_elsewhere(text))} == {}
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')]+", styles) == []
    # The theme's script fetches these if a page asks for them: mermaid for diagrams, facts about a repository.
    assert not any(re.search(r'class="mermaid"|data-md-component="source"', text) for text in pages.values())


@pytest.mark.slow
def test_pages_have_the_script_with_which_search_works_in_a_folder(site: Path, pages: dict[str, str]):
    assert (site / "search" / "search_index.js").is_file()
    without = [name for name, text in pages.items() if not re.search(r"<script src=\S*assets/iframe-worker\.js", text)]
    assert without == []


@pytest.mark.slow
def test_equations_are_rendered(pages: dict[str, str]):
    methods = [name for name in _names("method") if "<math" not in pages[f"methods/{name}.html"]]
    assert methods == []
    # What is left of an equation, list, table or code block that the site's Markdown reads otherwise than GitHub.
    leftover = re.compile(r'class="arithmatex"|<p>\$\$|<p>[^<]*\n(?:- |\d+\. |\|)|<p>[^<]*```|<code>``')
    assert {name: found for name, text in pages.items() if (found := leftover.findall(text))} == {}


def test_the_navigation_names_every_page():
    listed = set(_leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    generated = {"api/keys.md"}
    assert listed == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | generated


def test_every_method_has_a_page():
    for name in _names("method"):
        page = (DOCS / "methods" / f"{name}.md").read_text()
        assert f"`method={name}`" in page
        assert {"Idea", "Equations", "Recipes", "Results"} <= set(re.findall(r"^## (.+)$", page, re.MULTILINE)), name
        assert f"({name}.md)" in (DOCS / "methods" / "index.md").read_text()


def test_every_recipe_is_on_the_page_of_its_method():
    for recipe in sorted((ROOT / "configs").glob("*/*.yaml")):
        if recipe.parent.name in _names("method"):
            page = (DOCS / "methods" / f"{recipe.parent.name}.md").read_text()
            assert f"`configs/{recipe.parent.name}/{recipe.name}`" in page


def test_every_tool_and_its_command_are_described():
    page = (DOCS / "commands.md").read_text()
    commands = dict(re.findall(r'"(ssl-zoo-[\w-]+) = ssl_zoo\.tools\.(\w+):main"', (ROOT / "setup.py").read_text()))
    assert set(commands.values()) == {path.stem for path in (ROOT / "tools").glob("[!_]*.py")}
    rows = dict(re.findall(r"^\| `(ssl-zoo-[\w-]+)` \| `tools/(\w+)\.py` \| .*\]\(.+\.md", page, re.MULTILINE))
    assert rows == commands


@pytest.mark.slow
def test_every_config_group_and_part_is_described(pages: dict[str, str]):
    page = (DOCS / "configuration.md").read_text()
    missing = [name for name in sections() if not re.search(rf"^\| `{name}` \|", page, re.MULTILINE)]
    assert missing == []
    keys = pages["api/keys.html"]
    assert [name for name in sections() if f'<h2 id="{name}"' not in keys] == []
    parts = [name for registry in REGISTRIES.values() for name in registry.names()]
    assert [name for name in parts if f'<h3 id="{name}' not in keys] == []


def _loaded_from_elsewhere(page: str) -> list[str]:
    """Return the addresses of other hosts that a browser fetches by itself; links that a reader follows are none."""
    found: list[str] = []

    class Loads(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            if tag != "a":
                values = [value for name, value in attributes if name in ("src", "srcset", "href", "data", "poster")]
                found.extend(value for value in values if value and re.match("(?:https?:)?//", value))

    Loads().feed(page)
    return found


def _names(group: str) -> list[str]:
    discover([])
    return REGISTRIES[group].names()


def _leaves(nav: object) -> Iterator[str]:
    """Yield the pages of a navigation: texts inside lists and mappings of titles."""
    if isinstance(nav, str):
        yield nav
    else:
        for inner in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(inner)
