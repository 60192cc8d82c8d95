"""Malicious shards, shards with bad images, and shards of unequal sizes."""

import re
from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.testing.faults.archives import jpeg, write_tar
from ssl_zoo.testing.faults.corpus import ARCHIVES, BAD_IMAGES, ODD_IMAGES
from ssl_zoo.testing.faults.leftovers import difference, metrics
from ssl_zoo.testing.faults.processes import Command, expect
from ssl_zoo.testing.faults.scenario import Bench, Report, scenario
from ssl_zoo.testing.faults.training import NUM_STEPS, samples

_INDEX_BYTES = 256 << 20  # that the indexing tool may map in addition to those at its start
_TRAINING_BYTES = 1 << 30  # the same for a training; the decompression bomb would take seven times as much
_SLACK_S = 30.0
_PATHS = ("pipe:touch CANARY; cat a.tar", "file:a.tar", "ftp://127.0.0.1/a.tar", "PIPE:touch CANARY")
_SIZES = (5, 22, 17)  # of uneven shards, in samples
_AT_STEP = 9


@scenario(
    "tar archives with pickles, commands, links, devices, path traversal, bombs, false headers; commands as paths",
    f"refused by name, nothing is executed, within {_INDEX_BYTES >> 20} MiB of additional memory",
    bound_s=_SLACK_S,
)
def hostile_archives(bench: Bench, report: Report) -> None:
    place = bench.folder / "hostile-archives"
    place.mkdir()
    for number, (name, (build, complaint)) in enumerate(ARCHIVES.items()):
        archive = place / f"{number}.tar"
        build(archive)
        with report.fault(name):
            _expect_refused(report, place, ["--index", str(archive), str(place / "out")], complaint)
    for path in _PATHS:
        with report.fault(path):
            _expect_refused(report, place, ["--index", path, str(place / "out")], "there is no handler for")


@scenario(
    "a shard with bombs, truncated and empty images, programs named as images; too many of them",
    f"replaced, named, counted within {_TRAINING_BYTES >> 20} MiB of additional memory, the run finishes, resumes; "
    "too many are one error, status 1",
    bound_s=_SLACK_S,
)
def hostile_images(bench: Bench, report: Report) -> None:
    """Bad images are reported and replaced, also by a resumed run; too many of them end the run."""
    place = bench.folder / "hostile-images"
    data = _hostile_shard(place)
    reference, run = place / "reference", place / "killed"
    tolerant = "loader.max_corrupt_fraction=0.9"
    _finish(bench, reference, data, tolerant)
    listed = (reference / "corrupt_samples.txt").read_text()
    for name, (_, reason) in BAD_IMAGES.items():
        with report.fault(name):
            expect(re.search(rf"/{re.escape(name)}\t.*{re.escape(reason)}", listed) is not None, "it is not reported")
    for name in ODD_IMAGES:
        expect(f"/{name}" not in listed, f"{name} is reported, though it can be read")
    expect(metrics(reference)[-1]["step"] == NUM_STEPS, "the run did not finish")
    training = bench.start(run, tolerant, data=data)
    training.wait_for_step(_AT_STEP)
    training.kill_all()
    _finish(bench, run, data, tolerant)
    different = difference(run, reference)
    expect(different is None, f"the resumed run differs from the reference: {different}")
    with report.fault("more bad images than loader.max_corrupt_fraction"):
        training = bench.start(place / "strict", "loader.max_corrupt_fraction=0.01", data=data)
        report.expect_error(training, "loader.max_corrupt_fraction")
    _expect_nothing_ran(place)


@scenario(
    f"two ranks on shards of {', '.join(map(str, _SIZES))} samples, SIGKILL of both in the second epoch",
    "every epoch holds every sample exactly once",
)
def uneven_shards(bench: Bench, report: Report) -> None:
    """Shards of different sizes on two ranks: every epoch has every sample once, despite a kill."""
    place, number = bench.folder / "uneven-shards", 0
    for shard, size in enumerate(_SIZES):
        write_tar(place / f"{shard}.tar", [(f"{number + i:03}.jpg", jpeg(number + i, (40, 40))) for i in range(size)])
        number += size
    _index(place, [str(place / f"{shard}.tar") for shard in range(len(_SIZES))])
    data = (*_webdataset(place), "data.shuffle=shards", "data.shuffle_window=8")
    with report.fault("SIGKILL in the second epoch"):
        run = bench.folder / "uneven"
        training = bench.start(run, data=data, ranks=2)
        training.wait_for_step(_AT_STEP)
        training.kill_all()
        bench.finish(run, data=data, ranks=2)
        given = [samples(run, rank) for rank in range(2)]
        stream = [sample for step in range(1, NUM_STEPS + 1) for rank in given for sample in rank[step]]
        for epoch in range(len(stream) // number):
            part = sorted(stream[epoch * number : (epoch + 1) * number])
            expect(part == list(range(number)), f"epoch {epoch + 1} has the samples {part}")


def _expect_refused(report: Report, place: Path, arguments: Sequence[str], complaint: str) -> None:
    tool = Command("ssl_zoo.tools.make_shards", arguments, place / "log", more_bytes=_INDEX_BYTES)
    report.expect_error(tool, complaint)
    _expect_nothing_ran(place)


def _expect_nothing_ran(place: Path) -> None:
    expect(not list(place.rglob("CANARY")), "a command in the data was executed")


def _hostile_shard(place: Path) -> tuple[str, ...]:
    """Write a shard with good, bad and odd images and invalid samples; return the settings that read it."""
    files = [(f"{number:04}.jpg", jpeg(number, (40, 40))) for number in range(31)]
    files += [(name, data) for name, (data, _) in BAD_IMAGES.items()] + list(ODD_IMAGES.items())
    files += [("twice.jpg", jpeg(1)), ("twice.jpg", jpeg(2)), (b"\xff\n.jpg", jpeg(3, (40, 40)))]
    _index(place, [str(write_tar(place / "a.tar", files))])
    return (*_webdataset(place), "data.max_image_bytes=150000")


def _index(place: Path, shards: Sequence[str]) -> None:
    tool = Command(
        "ssl_zoo.tools.make_shards", ["--index", *shards, str(place)], place / "log", more_bytes=_INDEX_BYTES
    )
    expect(tool.end(_SLACK_S) == 0, f"no manifest: {tool.last_error()}")


def _webdataset(place: Path) -> tuple[str, ...]:
    return ("data=webdataset", f"data.path={place}", f"data.test_path={place}")


def _finish(bench: Bench, run: Path, data: Sequence[str], *settings: str) -> None:
    bench.finish(run, *settings, data=data, more_bytes=_TRAINING_BYTES)
