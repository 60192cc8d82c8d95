"""Import rules between the parts of the library, checked on the source, so that lazy imports count as well."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Leaves are importable by every part and import nothing of ours but themselves.
LEAVES = (
    "machine",
    "plotting",
    "precision",
    "progress",
    "registry",
    "settings",
    "seeding",
    "schedules",
    "scores",
    "io",
)

# Part -> what it may import besides itself and the leaves. "data" means all of it, "data.batch" that module alone.
MAY_IMPORT = {
    **dict.fromkeys(LEAVES, ()),
    "plugins": (),  # finds the parts by the names of their packages and imports none of them here
    "nn": ("world",),
    "masks": (),
    "ema": (),
    "world": (),
    "losses": ("world",),
    "regularizers": ("losses", "world"),
    "collapse": ("nn", "masks.base"),
    "targets": ("collapse", "data.batch", "ema", "nn", "masks"),
    "data": ("masks", "plugins"),
    "views": ("data.batch",),
    "method": ("collapse", "data.batch", "ema", "masks", "nn", "regularizers", "targets", "world"),
    "refusals": ("data.batch", "masks", "method", "nn", "targets"),
    "eval": ("nn", "data", "losses", "world"),
    # Never eval, methods, config. nn: attention kernels per device, blocks as units of sharding. masks, regularizers,
    # targets, views: built from their configs for a run and for its plan, by registry.
    "engine": ("collapse", "data", "ema", "masks", "method", "nn", "regularizers", "targets", "views", "world"),
    # The plan of a run builds every part on the meta device.
    "planning": ("engine", "eval", "method", "data", "nn", "masks", "targets"),
    "methods": (
        *("collapse", "data.batch", "ema", "losses", "masks", "method"),
        *("nn", "refusals", "regularizers", "targets", "world"),
    ),
    "config": ("data", "engine", "eval", "masks", "method", "nn", "plugins", "regularizers", "targets", "views"),
    # A study starts the training tool as a process and imports nothing of it.
    "study": ("config", "engine", "eval", "interop", "planning", "plugins"),
    # A decoder is a method of its own, which the engine trains; it opens runs, and its settings are no part of a run's.
    "decoding": ("config", "data", "ema", "engine", "masks", "method", "nn"),
    "interop": ("data.batch", "ema", "engine", "method", "nn", "targets"),
    # What the tools and the functions of ``import ssl_zoo`` share; no other part imports it.
    "api": ("config", "data", "engine", "eval", "interop", "method", "nn", "plugins", "study"),
    # Fault injection starts tools by their names; the benchmark and the golden verifiers restate or run methods.
    "testing": (
        *("data", "engine", "interop", "losses", "masks", "method", "methods"),
        *("nn", "planning", "plugins", "targets", "views", "world"),
    ),
    # Figures of a trained encoder; those of a method are the method's own.
    "visualization": ("data", "eval", "nn"),
    "configs": (),
    "tools": (
        *("api", "config", "configs", "data", "decoding", "engine", "eval", "interop", "masks"),
        *("method", "methods", "nn", "planning", "plugins", "study", "targets", "testing", "visualization"),
    ),
}
ROOT_MAY_IMPORT = ("api",)  # `ssl_zoo/__init__.py`, on first use
GRAFTS = ("methods", "configs", "tools")  # beside the package in a checkout, inside it when installed
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

# Processes, optimizers and files are the engine's.
FOREIGN_TO_METHODS = ("torch.distributed", "torch.optim", "os", "pathlib")
ONLY_IN_CONFIG = "hydra"


def modules(root: Path) -> dict[str, Path]:
    """Map dotted names below ``ssl_zoo`` to the modules of the checkout at ``root``; the package itself is ``""``."""
    files = [(path, path.relative_to(root / "ssl_zoo")) for path in (root / "ssl_zoo").rglob("*.py")]
    files += [(path, path.relative_to(root)) for graft in GRAFTS for path in (root / graft).rglob("*.py")]
    named = {}
    for path, relative in files:
        parts = relative.with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield (absolute dotted name, line) of every import of a file; ``ssl_zoo.`` and grafts resolved to one form.

    ``from package import name`` yields ``package.name`` where that is a module of ours, otherwise ``package``.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["ssl_zoo", *filter(None, package.split("."))]
                base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                is_module = full.removeprefix("ssl_zoo.") in known if base.startswith("ssl_zoo") else base == "torch"
                yield (full if is_module else base), node.lineno


def own_part(imported: str) -> str | None:
    """Return the name below ``ssl_zoo`` of an import of ours, also of a graft imported by its bare folder name."""
    if imported == "ssl_zoo" or imported.split(".")[0] in GRAFTS:
        return "" if imported == "ssl_zoo" else imported
    return imported.removeprefix("ssl_zoo.") if imported.startswith("ssl_zoo.") else None


def is_within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def violations(root: Path) -> list[str]:
    known = modules(root)
    found = []
    for name, path in known.items():
        part = name.split(".")[0]
        where = path.relative_to(root).as_posix()
        if part and part not in MAY_IMPORT:
            found.append(f"{where}: no import rule for ssl_zoo.{part}; decide on one in {Path(__file__).name}")
            continue
        # A method may not import its siblings; every other part may import all of itself.
        allowed = (*LEAVES, *MAY_IMPORT.get(part, ()), name if part == "methods" else part) if part else ROOT_MAY_IMPORT
        allowed = (part,) if part in LEAVES else allowed
        for imported, line in imports(name, path, known):
            if part == "methods" and any(is_within(imported, foreign) for foreign in FOREIGN_TO_METHODS):
                found.append(f"{where}:{line}: a method imports {imported}, which is the engine's")
            if part != "config" and is_within(imported, ONLY_IN_CONFIG):
                found.append(f"{where}:{line}: {part} imports {imported}, which only config may")
            target = own_part(imported)
            # `from ssl_zoo import __version__` imports no part.
            if target and not any(is_within(target, other) for other in allowed):
                found.append(f"{where}:{line}: {part or 'ssl_zoo/__init__'} imports {target}")
    return list(dict.fromkeys(found))


def test_every_import_follows_the_layers():
    assert len(modules(ROOT)) > 20
    assert violations(ROOT) == []


def test_no_module_has_a_vague_name():
    named = [path for name, path in modules(ROOT).items() if VAGUE_NAMES & set(name.split("."))]
    assert named == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("ssl_zoo/masks/random.py", "from ssl_zoo.nn import ViT", "masks imports nn"),
        ("ssl_zoo/masks/random.py", "from ..nn.vit import ViT", "masks imports nn.vit"),
        ("ssl_zoo/masks/random.py", "from .. import nn", "masks imports nn"),
        ("ssl_zoo/masks/random.py", "def sample():\n    import ssl_zoo.nn.vit", "masks imports nn.vit"),
        ("ssl_zoo/views/single_crop.py", "from ssl_zoo.data import loader", "views imports data.loader"),
        ("ssl_zoo/engine/trainer.py", "from ssl_zoo import eval", "engine imports eval"),
        ("ssl_zoo/method.py", "from ssl_zoo.data.loader import Loader", "method imports data.loader"),
        ("ssl_zoo/seeding.py", "import ssl_zoo.registry", "seeding imports registry"),
        ("ssl_zoo/registry.py", "from ssl_zoo.plugins import discover", "registry imports plugins"),
        ("ssl_zoo/masks/random.py", "from ssl_zoo.plugins import discover", "masks imports plugins"),
        ("ssl_zoo/registry.py", "from hydra.core.config_store import ConfigStore", "which only config may"),
        ("ssl_zoo/config/load.py", "import tools.train_net", "config imports tools.train_net"),
        ("ssl_zoo/config/load.py", "from ssl_zoo.methods.mae import MAE", "config imports methods.mae"),
        ("methods/ijepa.py", "from ssl_zoo.methods.mae import MAE", "methods imports methods.mae"),
        ("methods/ijepa.py", "from .mae import MAE", "methods imports methods.mae"),
        ("methods/ijepa.py", "from torch import distributed", "a method imports torch.distributed"),
        ("methods/ijepa.py", "import torch.distributed.nn as dist", "a method imports torch.distributed.nn"),
        ("ssl_zoo/__init__.py", "from ssl_zoo.nn import ViT", "ssl_zoo/__init__ imports nn"),
        ("ssl_zoo/engine/trainer.py", "from ssl_zoo.api import load", "engine imports api"),
        ("ssl_zoo/extras.py", "", "no import rule for ssl_zoo.extras"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, source, complaint):
    tree = ["nn/vit", "nn/__init__", "masks/random", "eval/knn", "eval/__init__", "data/loader", "plugins"]
    for path in [*(f"ssl_zoo/{inner}.py" for inner in tree), "methods/mae.py", "tools/train_net.py"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert violations(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source)
    [found] = violations(tmp_path)
    assert complaint in found
