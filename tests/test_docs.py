"""README.md and the pages in docs/: what they repeat of the code and of each other, and their links."""

import re
import runpy
from pathlib import Path

import pytest
from test_layering import LEAVES, MAY_IMPORT

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DESIGN = (ROOT / "docs" / "design.md").read_text()
TABLES = {"README": README, "methods": (ROOT / "docs" / "methods" / "index.md").read_text()}
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def test_the_method_in_the_readme_is_an_excerpt_of_its_file():
    [_, excerpt] = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    source = iter((ROOT / "methods" / "ijepa.py").read_text().splitlines())
    missing = [line for line in excerpt.splitlines() if line and line not in source]  # consumes the source, in order
    assert missing == []


def test_the_layers_of_the_design_are_the_tested_ones():
    [section] = re.findall(r"^## Layers\n(.*?)^## ", DESIGN, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.*) \| .* \| (.*) \|$", section, re.MULTILINE)
    names = re.compile(r"`([\w.]+)`")
    described = {part: set(names.findall(allowed)) for parts, allowed in rows for part in names.findall(parts)}
    assert described == {part: set(allowed) for part, allowed in MAY_IMPORT.items()}
    assert names.findall(rows[0][0]) == list(LEAVES)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_recipes_exist(page):
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    links = {folder / link for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)}
    recipes = {ROOT / recipe for recipe in re.findall(r"configs/\w+/\w+\.yaml", text)}
    assert [str(path) for path in links | recipes if not path.exists()] == []


def test_readme_and_the_page_of_methods_have_the_same_table():
    rows = {name: set(re.findall(r"^\| \[(.+?)\]\(.+?\) (\|.+)$", text, re.MULTILINE)) for name, text in TABLES.items()}
    assert rows["README"] == rows["methods"] != set()


def test_diagrams_are_those_that_their_program_draws():
    program = runpy.run_path(str(ROOT / "docs" / "diagrams.py"))
    drawn = {name: program["draw"](diagram) for name, diagram in program["DIAGRAMS"].items()}
    drawn["concepts"] = program["concepts"]()
    assert {path.stem: path.read_text() for path in (ROOT / "docs" / "images").glob("*.svg")} == drawn
