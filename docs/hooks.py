"""What the site needs beside mkdocs' plug-ins: equations as MathML, and a page of all parts and keys.

Browsers render MathML without a script, so nothing is fetched and nothing flickers.
"""

import dataclasses
import html
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.arithmatex import arithmatex_fenced_format

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout whose documentation is built

from ssl_zoo.config.document import presets
from ssl_zoo.config.keys import keys_of, written
from ssl_zoo.config.schema import Config, sections
from ssl_zoo.plugins import discover
from ssl_zoo.registry import REGISTRIES, Registry

KEYS_PAGE = "api/keys.md"
_SECTIONED = {"evaluators": "probe", "loggers": "monitor"}  # registries whose parts have sections of their names
# What pymdownx.arithmatex makes of $...$ and of a block with the fence ```math, both of which GitHub renders too.
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make blocks with the fence ```math equations."""
    fence = {"name": "math", "class": "arithmatex", "format": arithmatex_fenced_format(mode="generic", tag="div")}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of all parts and keys, which is generated from the code and is in no commit."""
    files.append(File.generated(config, KEYS_PAGE, content="\n".join(_keys_page())))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Rank the guide above the reference in the search."""
    if page.file.src_uri.startswith("api/"):
        page.meta["search"] = {"boost": 0.3}
    return markdown


def on_page_content(content: str, **_: object) -> str:
    """Replace equations by MathML."""
    return EQUATION.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    tag, latex = match.groups()
    return convert(html.unescape(latex.strip()), display="block" if tag == "div" else "inline")


def _keys_page() -> Iterator[str]:
    discover([])
    chosen = sections()
    own_sections = [name for registry in _SECTIONED for name in REGISTRIES[registry].names()]  # shown with their parts
    yield "# Parts and keys"
    yield "\nAll registered parts with their keys, generated from the code. `--help-config` prints those of a recipe.\n"
    yield from _table(Config, "", skip=chosen)
    for field in dataclasses.fields(Config):
        if field.name not in chosen:
            continue
        yield f"\n## {field.name}\n\n{field.metadata['meaning'].capitalize()}.\n"
        if field.name in REGISTRIES:
            yield from _parts(REGISTRIES[field.name], f"{field.name}.")
        else:
            yield from _table(chosen[field.name], f"{field.name}.", skip=own_sections)
    for registry, section in _SECTIONED.items():
        yield f"\n## {registry.capitalize()}\n\nEach has a section of its name in `{section}`.\n"
        yield from _parts(REGISTRIES[registry], f"{section}.", with_name=True)


def _parts(registry: Registry, prefix: str, *, with_name: bool = False) -> Iterator[str]:
    options = presets(registry.group)
    if options:
        yield "Presets, which set values of the parts below:\n\n| preset | |\n|---|---|"
        yield from (f"| `{name}` | {_cell(summary)} |" for name, summary in sorted(options.items()))
    for name in registry.names():
        yield f"\n### {name}\n\n{registry.summary(name)}\n"
        yield from _table(registry.config_of(name), f"{prefix}{name}." if with_name else prefix)


def _table(config: type, prefix: str, *, skip: Collection[str] = ()) -> Iterator[str]:
    keys = [key for key in keys_of(config) if key.name.partition(".")[0] not in skip]
    if not keys:
        yield "It has no keys."
        return
    yield "| key | type and bounds | default | meaning |\n|---|---|---|---|"
    for key in keys:
        default = written(_default(config, key.name))
        cells = [f"`{prefix}{key.name}`", _cell(key.expected), f"`{default}`" if default else "", _cell(key.meaning)]
        yield f"| {' | '.join(cells)} |"


def _default(config: object, name: str) -> object:
    """Return the default of a key by its dotted name, of a dataclass or of an instance with other values."""
    head, _, rest = name.partition(".")
    if isinstance(config, type):
        [field] = [field for field in dataclasses.fields(config) if field.name == head]
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    else:
        value = getattr(config, head)
    return _default(value, rest) if rest else value


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|").replace("*", "\\*")
