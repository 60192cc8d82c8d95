"""List the registered parts: ``python tools/list.py [kind] [--plugin MODULE_OR_FILE]``.

``--zoo RUNS`` prints a Markdown table of trained runs instead: recipe, data, cost, scores with the hashes of their
protocols, seed, commit and the SHA-256 of the weights, all from the records of the runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the checkout's packages are one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ssl_zoo.config.document import presets
from ssl_zoo.eval.presets import PRESETS, Preset
from ssl_zoo.interop.released import RELEASED
from ssl_zoo.io import write_atomic
from ssl_zoo.machine import refuse_windows
from ssl_zoo.plugins import discover
from ssl_zoo.registry import BROKEN_PLUGINS, REGISTRIES, Registry, UnknownName, nearest

WEIGHTS = "weights"  # published ones, which tools/import_weights.py --download knows
PROTOCOLS = "protocols"  # presets of evaluators


def main(argv: Sequence[str] | None = None) -> int:
    refuse_windows()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", help="e.g. method, masks, data; without it, the kinds")
    parser.add_argument("--plugin", action="append", default=[], help="module or file that registers parts; repeatable")
    parser.add_argument("--zoo", nargs="+", type=Path, metavar="RUNS", help="run directories, or folders of them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table of --zoo to a file")
    arguments = parser.parse_args(argv)
    if arguments.out and not arguments.zoo:
        parser.error("--out FILE is for the table of --zoo RUNS")
    try:
        discover(arguments.plugin)
        if arguments.zoo:
            return _zoo(arguments.zoo, arguments.out)
        rows = _rows(arguments.kind)
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        print(f"{name.ljust(width)}  {summary}")
    for plugin, error in BROKEN_PLUGINS.items():
        print(f"plug-in {plugin} can't be imported: {error}", file=sys.stderr)
    return 0


def _zoo(paths: Sequence[Path], out: Path | None) -> int:
    from ssl_zoo.study.zoo import ZooEntry, find_runs, zoo_page  # imports torch and the planner

    page = zoo_page([ZooEntry.read(run) for run in find_runs(paths)])
    if out is None:
        print(page)
    else:
        write_atomic(out, page)
    return 0


def _rows(kind: str | None) -> list[tuple[str, str]]:
    if kind == WEIGHTS:
        return [(name, released.summary) for name, released in RELEASED.items()]
    if kind == PROTOCOLS:
        return [(key, preset.summary) for key, preset in _protocols().items()]
    return _kinds() if kind is None else _names(_registry(kind))


def _kinds() -> list[tuple[str, str]]:
    parts = [(group, ", ".join(name for name, _ in _names(kind))) for group, kind in REGISTRIES.items()]
    return [*parts, (WEIGHTS, ", ".join(RELEASED)), (PROTOCOLS, ", ".join(_protocols()))]


def _protocols() -> dict[str, Preset]:
    """Return the presets of evaluators as they are chosen."""
    return {
        f"probe.{evaluator}.preset={name}": preset for evaluator, of in PRESETS.items() for name, preset in of.items()
    }


def _names(registry: Registry) -> list[tuple[str, str]]:
    """Return name and summary of the registered classes, then of the presets (YAML options that set their values)."""
    return [(name, registry.summary(name)) for name in registry.names()] + sorted(presets(registry.group).items())


def _registry(word: str) -> Registry:
    """Return the registry of a group or kind, e.g. ``masks``, ``mask generator`` or ``mask generators``."""
    spellings = {
        spelling: kind for kind in REGISTRIES.values() for spelling in (kind.group, kind.kind, f"{kind.kind}s")
    }
    if word not in spellings:
        near = nearest(word, [*spellings, WEIGHTS, PROTOCOLS])
        hint = f" Did you mean {near!r}?" if near else ""
        raise UnknownName(f"no parts of kind {word!r}.{hint} Kinds: {', '.join([*REGISTRIES, WEIGHTS, PROTOCOLS])}")
    return spellings[word]


if __name__ == "__main__":
    sys.exit(main())
