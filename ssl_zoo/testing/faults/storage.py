"""File systems that are full or read-only, and checkpoints that are damaged."""

import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_zoo.testing.faults.leftovers import checkpoints, damage, files
from ssl_zoo.testing.faults.processes import expect
from ssl_zoo.testing.faults.scenario import Bench, NotPossible, Report, expect_valid_checkpoints, scenario
from ssl_zoo.testing.faults.training import Training

_SLACK_S = 30.0
_FLIPS_PER_FILE = 2
_FEW_BYTES, _MANY_BYTES = 2 << 20, 64 << 20  # sizes of a file system for a few checkpoints, and for all
_AT_STEP = 4


@scenario(
    f"a file system of {_FEW_BYTES >> 20} MiB (tmpfs), enlarged later",
    "one error, status 1, at every start; with room the same command resumes",
    bound_s=_SLACK_S,
)
def disk_full(bench: Bench, report: Report) -> None:
    """A full disk is one error and damages no checkpoint; with room the run resumes."""
    place = bench.folder / "small-disk"
    with _mounted(place, "-t", "tmpfs", "-o", f"size={_FEW_BYTES}", "tmpfs"):
        run = place / "run"
        for what in ("no space left", "no space left when it starts again"):
            with report.fault(what):
                _expect_one_error(report, bench.start(run), "No space left on device")
                expect_valid_checkpoints(run)
        _mount("-o", f"remount,size={_MANY_BYTES}", str(place))
        bench.finish_equal(run)


@scenario(
    "checkpoints/ mounted read-only while a run writes to it, the run directory before a start",
    "one error, status 1; the same command resumes when it is writable",
    bound_s=_SLACK_S,
)
def read_only(bench: Bench, report: Report) -> None:
    run = bench.folder / "read-only"
    with report.fault("read-only while it runs"):
        training = bench.start(run)
        training.wait_for_step(_AT_STEP)
        with _read_only(run / "checkpoints"):
            _expect_one_error(report, training, "Read-only file system")
        expect_valid_checkpoints(run)
    with report.fault("read-only when it starts"), _read_only(run):
        _expect_one_error(report, bench.start(run), "Read-only file system")
    bench.finish_equal(run)


@scenario(
    "each file of the newest checkpoint truncated to half and to 0 bytes",
    "refused with file and remedy; --resume with the previous checkpoint succeeds",
    bound_s=_SLACK_S,
)
def truncated(bench: Bench, report: Report) -> None:
    def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
        for length in (len(content) // 2, 0):
            yield f"{length} bytes", content[:length]

    _each_refused(bench, report, "truncated", damages)


@scenario(
    "random bits of the newest checkpoint's files",
    "refused with file and remedy; --resume with the previous checkpoint succeeds",
    bound_s=_SLACK_S,
)
def bit_flip(bench: Bench, report: Report) -> None:
    bits = random.Random("bits")

    def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
        for bit in bits.sample(range(8 * len(content)), _FLIPS_PER_FILE):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            yield f"bit {bit}", bytes(flipped)

    _each_refused(bench, report, "bit-flipped", damages)


@scenario(
    "a step folder without manifest; the hidden folder of an unfinished save",
    "refused with the remedy; ignored and removed, the same command resumes",
    bound_s=_SLACK_S,
)
def half_written(bench: Bench, report: Report) -> None:
    run = _copy(bench, "half-written")
    newest = checkpoints(run)[-1]
    with report.fault("a step folder without manifest"):
        (newest / "manifest.json").unlink()
        sorted(newest.iterdir())[0].unlink()
        _expect_refused(bench, report, run)
    with report.fault("the folder of an unfinished save"):
        newest.rename(newest.with_name(f".{newest.name}"))
        bench.finish_equal(run)


def _copy(bench: Bench, name: str) -> Path:
    run = bench.folder / name
    shutil.copytree(bench.reference(), run)
    return run


def _each_refused(
    bench: Bench, report: Report, name: str, damages: Callable[[bytes], Iterator[tuple[str, bytes]]]
) -> None:
    """Damage each file of the newest checkpoint in turn, then resume from the previous checkpoint.

    Args:
        damages: maps a file's content to descriptions of damages and the damaged contents.
    """
    run = _copy(bench, name)
    newest = checkpoints(run)[-1]
    for file in [*files(newest), newest / "manifest.json"]:
        original = file.read_bytes()
        for what, damaged in damages(original):
            file.write_bytes(damaged)
            with report.fault(f"{file.name}: {what}"):
                _expect_refused(bench, report, run)
        file.write_bytes(original)
    files(newest)[0].write_bytes(b"")
    bench.finish(run, "--resume", str(checkpoints(run)[-2]))
    bench.finish_equal(run)


def _expect_refused(bench: Bench, report: Report, run: Path) -> None:
    """Expect an error about the damaged newest checkpoint that names the previous one, which must be valid."""
    newest, previous = checkpoints(run)[-1], checkpoints(run)[-2]
    training = bench.start(run)
    _expect_one_error(report, training, newest.name)
    expect(f"--resume {previous}" in training.last_error(), f"no remedy is named: {training.last_error()}")
    expect(damage(previous) is None, f"the previous one is damaged too: {damage(previous)}")


def _expect_one_error(report: Report, training: Training, message: str) -> None:
    report.expect_error(training, message)
    expect("Traceback" not in training.output, f"there is a traceback: {training.last_error()}")


@contextmanager
def _mounted(place: Path, *arguments: str) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    _mount(*arguments, str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # after a failure a process may still use it


@contextmanager
def _read_only(place: Path) -> Iterator[None]:
    with _mounted(place, "--bind", str(place)):
        for attempt in range(100):
            try:
                _mount("-o", "remount,bind,ro", str(place))
                break
            except NotPossible:  # while a file is being written there
                if attempt == 99:
                    raise
                time.sleep(0.02)
        yield


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotPossible("the command mount is missing") from error
    if done.returncode:
        raise NotPossible(f"mounting is not permitted: {done.stderr.strip()}")
