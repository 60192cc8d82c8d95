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
from ssl_zoo.testing.faults.scenario import Laboratory, NotPossible, Report, Scenario, expect_whole_checkpoints
from ssl_zoo.testing.faults.training import Training

_SLACK_S = 30.0
_FLIPS_PER_FILE = 2
_FEW_BYTES, _MANY_BYTES = 2 << 20, 64 << 20  # of a file system for a few checkpoints, and of one for all
_AT_STEP = 4


def disk_full(laboratory: Laboratory, report: Report) -> None:
    """A full disk is one error, damages no checkpoint, and is forgotten once there is room."""
    place = laboratory.folder / "small-disk"
    with _mounted(place, "-t", "tmpfs", "-o", f"size={_FEW_BYTES}", "tmpfs"):
        run = place / "run"
        with report.fault("no space left"):
            training = laboratory.start(run)
            _expect_one_error(report, training, "No space left on device")
            expect_whole_checkpoints(run)
        with report.fault("no space left when it starts again"):
            training = laboratory.start(run)
            _expect_one_error(report, training, "No space left on device")
            expect_whole_checkpoints(run)
        _mount("-o", f"remount,size={_MANY_BYTES}", str(place))
        laboratory.finish_equal(run)


def read_only(laboratory: Laboratory, report: Report) -> None:
    run = laboratory.folder / "read-only"
    with report.fault("read-only while it runs"):
        training = laboratory.start(run)
        training.wait_for_step(_AT_STEP)
        with _read_only(run / "checkpoints"):
            _expect_one_error(report, training, "Read-only file system")
        expect_whole_checkpoints(run)
    with report.fault("read-only when it starts"), _read_only(run):
        _expect_one_error(report, laboratory.start(run), "Read-only file system")
    laboratory.finish_equal(run)


def truncated(laboratory: Laboratory, report: Report) -> None:
    def damages(whole: bytes) -> Iterator[tuple[str, bytes]]:
        for length in (len(whole) // 2, 0):
            yield f"{length} bytes", whole[:length]

    _each_refused(laboratory, report, "truncated", damages)


def bit_flips(laboratory: Laboratory, report: Report) -> None:
    draws = random.Random("bits")

    def damages(whole: bytes) -> Iterator[tuple[str, bytes]]:
        for bit in draws.sample(range(8 * len(whole)), _FLIPS_PER_FILE):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            yield f"bit {bit}", bytes(flipped)

    _each_refused(laboratory, report, "bit-flipped", damages)


def half_written(laboratory: Laboratory, report: Report) -> None:
    run = _copy(laboratory, "half-written")
    newest = checkpoints(run)[-1]
    with report.fault("a step folder without manifest"):
        (newest / "manifest.json").unlink()
        files_left = sorted(newest.iterdir())
        files_left[0].unlink()
        _expect_refused(laboratory, report, run)
    with report.fault("the folder of an unfinished save"):
        newest.rename(newest.with_name(f".{newest.name}"))
        laboratory.finish_equal(run)


def _copy(laboratory: Laboratory, name: str) -> Path:
    run = laboratory.folder / name
    shutil.copytree(laboratory.reference(), run)
    return run


def _each_refused(
    laboratory: Laboratory, report: Report, name: str, damages: Callable[[bytes], Iterator[tuple[str, bytes]]]
) -> None:
    """Damage each file of the newest checkpoint in turn, then go on from the checkpoint before.

    Args:
        damages: of a file's content: what is done to it, and what becomes of it.
    """
    run = _copy(laboratory, name)
    newest = checkpoints(run)[-1]
    for file in [*files(newest), newest / "manifest.json"]:
        whole = file.read_bytes()
        for what, content in damages(whole):
            file.write_bytes(content)
            with report.fault(f"{file.name}: {what}"):
                _expect_refused(laboratory, report, run)
        file.write_bytes(whole)
    files(newest)[0].write_bytes(b"")
    _finish_from_previous(laboratory, run)


def _expect_refused(laboratory: Laboratory, report: Report, run: Path) -> None:
    """A damaged newest checkpoint must be an error that names the one before it, which is whole."""
    newest, previous = checkpoints(run)[-1], checkpoints(run)[-2]
    training = laboratory.start(run)
    _expect_one_error(report, training, newest.name)
    expect(f"--resume {previous}" in training.last_words(), f"no remedy is told: {training.last_words()}")
    expect(damage(previous) is None, f"the one before it is damaged too: {damage(previous)}")


def _finish_from_previous(laboratory: Laboratory, run: Path) -> None:
    laboratory.finish(run, "--resume", str(checkpoints(run)[-2]))
    laboratory.finish_equal(run)


def _expect_one_error(report: Report, training: Training, told: str) -> None:
    status = report.end(training)
    words = training.last_words()
    expect(status == 1 and words.startswith("error: ") and told in words, f"status {status}, not told: {words}")
    expect("Traceback" not in training.output, f"a traceback comes before: {words}")


@contextmanager
def _mounted(place: Path, *arguments: str) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    _mount(*arguments, str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # somebody may still be there after a failure


@contextmanager
def _read_only(place: Path) -> Iterator[None]:
    with _mounted(place, "--bind", str(place)):
        for attempt in range(100):
            try:
                _mount("-o", "remount,bind,ro", str(place))
                break
            except NotPossible:  # as long as a file is being written there
                if attempt == 99:
                    raise
                time.sleep(0.02)
        yield


def _mount(*arguments: str) -> None:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotPossible("there is no command mount") from error
    if done.returncode:
        raise NotPossible(f"nothing can be mounted here: {done.stderr.strip()}")


SCENARIOS = (
    Scenario(
        "disk_full",
        f"a file system of {_FEW_BYTES >> 20} MiB (tmpfs), enlarged later",
        "one error, status 1, at every start; with room the same command goes on",
        _SLACK_S,
        disk_full,
    ),
    Scenario(
        "read_only",
        "checkpoints/ mounted read-only while a run writes to it, the run directory before a start",
        "one error, status 1; the same command goes on when it is writable",
        _SLACK_S,
        read_only,
    ),
    Scenario(
        "truncated",
        "each file of the newest checkpoint cut to half and to nothing",
        "refused with file and remedy; --resume with the checkpoint before it goes on",
        _SLACK_S,
        truncated,
    ),
    Scenario(
        "bit_flip",
        "random bits of the newest checkpoint's files",
        "refused with file and remedy; --resume with the checkpoint before it goes on",
        _SLACK_S,
        bit_flips,
    ),
    Scenario(
        "half_written",
        "a step folder without manifest; the hidden folder of an unfinished save",
        "refused with the remedy; ignored and removed, the same command goes on",
        _SLACK_S,
        half_written,
    ),
)
