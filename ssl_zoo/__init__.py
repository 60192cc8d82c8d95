"""Self-supervised vision methods that share one engine: a method is one file, a comparison is a config swap."""

from pathlib import Path

__version__ = "0.1.0"

# A wheel holds `methods/`, `configs/` and `tools/` inside this package; a checkout holds them beside it. With the
# root on `__path__` both import as `ssl_zoo.methods`, `ssl_zoo.configs` and `ssl_zoo.tools`.
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "methods" / "__init__.py").is_file() and (_ROOT / "setup.py").is_file():
    __path__.append(str(_ROOT))
