"""Self-supervised vision methods that share one engine: a method is one file, a comparison is a config swap."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_zoo.api import Encoder, Run, Transform, evaluate, load, train

__version__ = "0.1.0"

__all__ = ["Encoder", "Run", "Transform", "evaluate", "load", "train"]

# A wheel holds `methods/`, `configs/` and `tools/` inside this package; a checkout holds them beside it. With the
# root on `__path__` both import as `ssl_zoo.methods`, `ssl_zoo.configs` and `ssl_zoo.tools`.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "methods" / "__init__.py").is_file() and (_ROOT / "setup.py").is_file():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    """Import the Python interface on first use, so that importing the package imports no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ssl_zoo.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
