"""The result of a benchmark as tables: one column per recipe, and one row per recipe that has baselines."""

from collections.abc import Sequence

from rich.table import Column, Table

from ssl_zoo.testing.benchmark.comparison import Result, SpeedUp, baselines_of


def table(results: Sequence[Result]) -> Table:
    """Build a table of speed, time per phase and bottleneck; ratios are to the first column."""
    columns = (Column(result.case.name, overflow="fold") for result in results)  # similar names must not be cut off
    built = Table("", *columns, title="Training steps", title_justify="left")
    for title, cells in _rows(results):
        built.add_row(title, *cells)
    return built


def baseline_table(results: Sequence[Result]) -> Table | None:
    """Build a table of images per second: those of each recipe, then of its baselines with the recipe's speed-up.

    Returns:
        None where no recipe has a baseline.
    """
    names = list(dict.fromkeys(result.case.baseline for result in results if result.case.baseline is not None))
    if not names:
        return None
    title = "Images/s, and the speed-up of ssl_zoo in images/s and in CPU time"
    built = Table("", "precision", "ssl_zoo", *names, title=title, title_justify="left")
    for result in results:
        baselines = baselines_of(result, results)
        if baselines:
            cells = (_speed(baselines.get(name), result) for name in names)
            built.add_row(result.case.name, result.facts.precision, f"{result.images_per_second:,.1f}", *cells)
    return built


def _speed(baseline: Result | None, recipe: Result) -> str:
    if baseline is None:
        return ""
    speed_up = SpeedUp.of(recipe, baseline)
    cpu_time = "" if speed_up.cpu_time is None else f", {speed_up.cpu_time:.2f}x"
    return f"{baseline.images_per_second:,.1f} ({speed_up.images_per_second:.2f}x{cpu_time})"


def _rows(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    first = results[0].images_per_second
    names = dict.fromkeys(name for result in results for name in result.phases)
    rows = [
        ("images/s", [f"{r.images_per_second:,.1f}" for r in results]),
        ("relative to the first", [f"{r.images_per_second / first:.2f}x" for r in results]),
        ("batch size", [f"{r.facts.batch_size:,}" for r in results]),
        ("processes", [str(r.case.world_size) for r in results]),
        ("precision", [r.facts.precision for r in results]),
        ("ms per step", [_spread(r) for r in results]),
        ("CPU time of a step", [_milliseconds(r.cpu_seconds) for r in results]),
    ]
    rows += [(f"  {name}", [_share(r, name) for r in results]) for name in names]
    rows += [
        ("masks of a step, in parallel", [_milliseconds(r.facts.masks_seconds) for r in results]),
        ("a step of one image", [_milliseconds(r.facts.fixed_seconds) for r in results]),
        ("parameters of the encoder", [_count(r.facts.encoder_parameters) for r in results]),
        ("GFLOPs per image", [_giga(r.facts.flops_per_image.get("step")) for r in results]),
        ("GFLOP/s", [_giga(r.flops_per_second) for r in results]),
        ("fastest matmul, GFLOP/s", [_giga(r.peak_flops) for r in results]),
        ("model FLOPs utilisation", ["" if r.utilisation is None else f"{r.utilisation:.0%}" for r in results]),
        (
            "peak memory",
            ["unknown" if r.memory_bytes is None else f"{r.memory_bytes / 2**30:.2f} GiB" for r in results],
        ),
        ("limited by", [r.limit for r in results]),
    ]
    if any(r.facts.differences for r in results):
        rows.append(("differs from the recipe", ["; ".join(r.facts.differences) for r in results]))
    return rows


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _spread(result: Result) -> str:
    step = result.step
    return f"{1e3 * step.median:,.1f} ({1e3 * step.low:,.1f}..{1e3 * step.high:,.1f})"


def _share(result: Result, name: str) -> str:
    if name not in result.phases:
        return ""
    seconds = result.phases[name]
    return f"{1e3 * seconds:,.1f} ({seconds / result.step.median:.0%})"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def _giga(count: float | None) -> str:
    return "" if count is None else f"{count / 1e9:,.2f}"
