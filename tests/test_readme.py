"""README.md: its excerpt of a method, its links and its recipes."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_method_shown_is_an_excerpt_of_its_file():
    [excerpt] = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    source = iter((ROOT / "methods" / "ijepa.py").read_text().splitlines())
    missing = [line for line in excerpt.splitlines() if line and line not in source]  # consumes the source, in order
    assert missing == []


def test_links_and_recipes_exist():
    named = set(re.findall(r"\]\((?!https?:)([^)#]+)", README)) | set(re.findall(r"configs/\S+\.yaml", README))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
