"""Shards contain their source byte for byte; damage and hostile content are detected."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from itertools import chain

import pytest
import torch
from PIL import Image
from shard_archives import write_images
from webdataset.tariterators import group_by_keys, tar_file_expander

from ssl_zoo.data.decode import DecodeLimits, decode
from ssl_zoo.data.shards import tar
from ssl_zoo.data.shards.adopt import index_shards
from ssl_zoo.data.shards.check import check_shards
from ssl_zoo.data.shards.index import scan
from ssl_zoo.data.shards.inputs import AllImages, unique_keys
from ssl_zoo.data.shards.manifest import read_manifest
from ssl_zoo.data.shards.tar import RefusedArchive
from ssl_zoo.data.shards.write import make_shards
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.sources.scenes import ScenesConfig
from ssl_zoo.testing.faults.archives import jpeg, write_tar
from ssl_zoo.testing.faults.corpus import ARCHIVES

NAMES = [f"{kind}/{number}.jpg" for kind in ("cat", "ant", "bee") for number in range(7)]
SHARD_BYTES = 18_000  # three shards of the 21 images


def _make(folder, source=None, **options):
    source = source or AllImages(str(write_images(folder / "images", NAMES)))
    return make_shards(source, folder / "shards", **{"name": "images", "shard_bytes": SHARD_BYTES, **options})


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def _third_party_samples(folder):
    """Samples as webdataset itself reads and groups them, undecoded."""
    samples = []
    for path in sorted(folder.glob("*.tar")):
        with open(path, "rb") as stream:  # webdataset's own opener leaves files to the garbage collector
            samples += group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
    return samples


def test_webdataset_reads_the_stored_bytes_and_labels_of_every_image(tmp_path):
    manifest = _make(tmp_path)
    assert len(manifest.shards) == 3 and [shard.samples for shard in manifest.shards] == [7, 7, 7]
    samples = {sample["__key__"]: sample for sample in _third_party_samples(tmp_path / "shards")}
    assert sorted(samples) == sorted(name.removesuffix(".jpg") for name in NAMES)
    for name in NAMES:
        sample = samples[name.removesuffix(".jpg")]
        assert sample["jpg"] == (tmp_path / "images" / name).read_bytes()
        assert manifest.label_sets["class"].classes[int(sample["cls"])] == name.split("/")[0]


def test_no_shard_contains_only_one_class_though_the_source_is_sorted_by_class(tmp_path):
    _make(tmp_path)
    for path in (tmp_path / "shards").glob("*.tar"):
        assert len({entry.key.split(b"/")[0] for entry in scan(path)[0]}) > 1


def test_a_source_of_pixels_is_stored_without_loss_and_with_all_its_label_sets(tmp_path):
    source = SOURCES.build(ScenesConfig(image_size=16, num_train=9), Split.train)
    manifest = _make(tmp_path, source)
    assert manifest.image_size == (16, 16) and list(manifest.label_sets) == ["distance", "count", "shape"]
    samples = _third_party_samples(tmp_path / "shards")
    for sample in samples:
        number = int(sample["__key__"].rpartition("/")[2])
        assert torch.equal(decode(sample["png"], "", DecodeLimits(10**6, 10**6, 1)), source.image(number))
        assert json.loads(sample["json"]) == {name: int(v[number]) for name, v in source.label_sets.items()}
        assert int(sample["cls"]) == int(source.labels[number])
    assert len(samples) == 9


def test_only_larger_images_are_resized(tmp_path):
    folder = write_images(tmp_path / "images", ["small.jpg"])
    (folder / "large.jpg").write_bytes(jpeg(1, (90, 60)))
    Image.new("RGB", (50, 100), "red").save(folder / "large.png")
    _make(tmp_path, AllImages(str(folder)), resize_short=20)
    samples = {sample["__key__"]: sample for sample in _third_party_samples(tmp_path / "shards")}
    assert samples["small"]["jpg"] == (folder / "small.jpg").read_bytes()
    [png] = [sample["png"] for sample in samples.values() if "png" in sample]
    assert Image.open(io.BytesIO(samples["large"]["jpg"])).size == (30, 20)
    assert Image.open(io.BytesIO(png)).size == (20, 40)


def test_files_that_are_no_images_are_left_out_by_name_and_the_rest_keeps_its_order(tmp_path):
    folder = write_images(tmp_path / "images", NAMES)
    (folder / "bee" / "3.jpg").write_bytes(b"")
    manifest = _make(tmp_path, AllImages(str(folder)))
    left_out = [sample for shard in manifest.shards for sample in shard.left_out]
    assert [(sample.name, sample.reason) for sample in left_out] == [("bee/3.jpg", "the file is empty")]
    assert manifest.num_samples == 20 and check_shards(str(tmp_path / "shards")) == []


def test_the_number_of_processes_changes_no_byte(tmp_path):
    for name, num_workers in (("one", 0), ("two", 2)):
        _make(tmp_path / name, num_workers=num_workers)
    assert _content(tmp_path / "one" / "shards") == _content(tmp_path / "two" / "shards")


@pytest.mark.parametrize("point", ["after a shard", "within a shard", "before the manifest"])
def test_an_interrupted_call_is_finished_by_the_next_and_keeps_finished_shards(tmp_path, point):
    class Stop(Exception):
        pass

    _make(tmp_path / "full")
    source = AllImages(str(write_images(tmp_path / "images", NAMES)))
    lines = []

    def stop(line):
        lines.append(line)
        if len(lines) == {"after a shard": 1, "within a shard": 2, "before the manifest": 3}[point]:
            raise Stop

    with pytest.raises(Stop):
        _make(tmp_path, source, report=stop)
    finished = {path.name: path.stat().st_ino for path in (tmp_path / "shards").glob("*.tar")}
    if point == "within a shard":
        (tmp_path / "shards" / ".shard-00002.tar.partial").write_bytes(b"half")
        finished.pop("shard-00002.tar", None)
    assert not (tmp_path / "shards" / "manifest.json").exists()
    _make(tmp_path, source)
    assert _content(tmp_path / "shards") == _content(tmp_path / "full" / "shards")
    assert finished.items() <= {path.name: path.stat().st_ino for path in (tmp_path / "shards").iterdir()}.items()


def test_a_damaged_shard_is_written_again_and_the_others_are_kept(tmp_path):
    _make(tmp_path)
    before = _content(tmp_path / "shards")
    (tmp_path / "shards" / "shard-00001.tar").write_bytes(before["shard-00001.tar"][:-100])
    lines = []
    _make(tmp_path, report=lines.append)
    assert _content(tmp_path / "shards") == before
    assert [line.rpartition(", ")[2] for line in lines] == ["kept", "written", "kept"]


def test_shards_of_another_source_are_neither_kept_nor_overwritten(tmp_path):
    _make(tmp_path)
    before = _content(tmp_path / "shards")
    for options in ({"resize_short": 8}, {"shard_bytes": 10**6}):
        with pytest.raises(ValueError, match="shards of another source or of other options; choose another folder"):
            _make(tmp_path, **options)
    assert _content(tmp_path / "shards") == before


@pytest.mark.slow
def test_a_killed_process_leaves_a_folder_that_the_same_command_finishes(tmp_path):
    _make(tmp_path / "full")
    write_images(tmp_path / "images", NAMES)
    code = f"""
import os, signal
from ssl_zoo.data.shards import write
from ssl_zoo.data.shards.inputs import AllImages
from pathlib import Path
real = write.members_of
def members_of(source, sample, *rest):
    if (Path({str(tmp_path)!r}) / "shards" / "shard-00000.tar").exists() and sample == {7}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(source, sample, *rest)
write.members_of = members_of
write.make_shards(AllImages({str(tmp_path / "images")!r}), Path({str(tmp_path / "shards")!r}), name="images",
                  shard_bytes={SHARD_BYTES})
"""
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.getcwd()})
    partial = list((tmp_path / "shards").glob(".*.partial"))
    assert killed.returncode == -9 and len(partial) == 1 and not (tmp_path / "shards" / "manifest.json").exists()
    _make(tmp_path, AllImages(str(tmp_path / "images")))
    assert _content(tmp_path / "shards") == _content(tmp_path / "full" / "shards")


def _truncate(folder):
    path = folder / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-1000])


def _flip(folder, name="shard-00001.tar", where=3000):
    data = bytearray((folder / name).read_bytes())
    data[where] ^= 16
    (folder / name).write_bytes(data)


def _lie(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"samples": 7,', '"samples": 8,', 1))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_truncate, r"shard-00001\.tar has \d+ bytes, not the \d+ of the manifest"),
        (_flip, r"shard-00001\.tar: its content has changed"),
        (lambda folder: _flip(folder, "index.safetensors", 900), r"index\.safetensors: its content has changed"),
        (lambda folder: (folder / "shard-00001.tar").unlink(), r"shard-00001\.tar is missing"),
        (lambda folder: (folder / "shard-00009.tar").touch(), r"shard-00009\.tar: it is not in the manifest"),
        (_lie, r"shard-00000\.tar: 7 samples, 7 of them as in the index, which has 8"),
    ],
)
def test_a_check_reports_exactly_the_damage(tmp_path, damage, complaint):
    _make(tmp_path)
    assert check_shards(str(tmp_path / "shards")) == []
    damage(tmp_path / "shards")
    [problem] = check_shards(str(tmp_path / "shards"))
    assert re.search(complaint, problem)


def test_two_writers_of_one_folder_are_one_clear_error(tmp_path):
    def second(line):
        with pytest.raises(ValueError, match="another process writes shards"):
            _make(tmp_path)

    _make(tmp_path, report=second)


def test_keys_are_unique_and_end_where_webdataset_ends_them():
    names = [
        "a/x.jpg",
        "a/x.png",
        "a.b/c.d.jpg",
        "../../etc/passwd.jpg",
        "/abs.jpg",
        "__meta__/y.jpg",
        "plain",
        "./z.jpg",
    ]
    keys = unique_keys(names)
    assert keys == ["a/x", "a/x-1", "a.b/c_d", "etc/passwd", "abs", "meta/y", "plain", "z"]


# --- existing archives -----------------------------------------------------------------------------------------------


def _index(folder, files, **options):
    write_tar(folder / "a.tar", files)
    return index_shards([str(folder / "a.tar")], folder, **options)


def test_existing_shards_get_a_manifest_of_their_usable_samples(tmp_path):
    big = b'{"height": 5, "genus": 3, "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    files = [
        ("x/0.jpg", jpeg(0)), ("x/0.cls", b"4\n"), ("x/0.json", b'{"genus": 2}'), ("x/0.txt", b"caption"),
        ("x/1.jpg", jpeg(1)), ("x/1.cls", b"cat"),
        ("x/2.cls", b"1"),
        ("x/3.jpg", jpeg(3)), ("x/3.jpg", jpeg(4)), ("x/3.cls", b"1"),
        ("x/0.jpg", jpeg(5)), ("x/0.cls", b"1"),
        ("x/4.png", b"empty"), ("x/4.cls", b"0"), ("x/4.json", b'{"genus": 1}'),
        ("x/5.jpg", jpeg(5)), ("x/5.cls", b"9" * 5000),
        ("x/6.jpg", jpeg(6)), ("x/6.cls", b"1"), ("x/6.json", big),
        ("x/7.jpg", jpeg(7)), ("x/7.cls", b"1"), ("x/7.json", b'{"genus": true}'),
        (b"x/\xff\n8.jpg", jpeg(8)), (b"x/\xff\n8.cls", b"1"), (b"x/\xff\n8.json", b'{"genus": 0}'),
        ("x/._9.jpg", b"macOS"),
        ("x/9.jpg", jpeg(9)), ("x/9.cls", b"1"), ("x/9.json", b" " * (2 << 20)),
    ]  # fmt: skip
    manifest = _index(tmp_path, files, label_keys=["genus"])
    [shard] = manifest.shards
    reasons = {sample.name.rpartition("/")[2]: sample.reason for sample in shard.left_out}
    assert shard.samples == 3 and shard.num_left_out == len(shard.left_out) == 9
    assert reasons["1"] == "its .cls is no integer: 'cat'" and "no image" in reasons["2"]
    assert reasons["._9.jpg"] == "it is a hidden file"
    assert reasons["3"] == "it has two members .jpg" and reasons["0"] == "its key is in the shard twice"
    assert "5000 bytes" in reasons["5"] and "broken" in reasons["6"]
    assert "label genus is 'True'" in reasons["7"] and "2097152 bytes" in reasons["9"]
    assert {name: labels.num_classes for name, labels in manifest.label_sets.items()} == {"class": 5, "genus": 3}
    assert check_shards(str(tmp_path)) == []


def test_a_manifest_is_not_overwritten(tmp_path):
    _index(tmp_path, [("0.jpg", jpeg(0))])
    with pytest.raises(ValueError, match=r"manifest\.json already"):
        index_shards([str(tmp_path / "a.tar")], tmp_path)


def test_shards_of_which_only_some_have_labels_are_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="1 of 2 samples have no label class"):
        _index(tmp_path, [("0.jpg", jpeg(0)), ("0.cls", b"1"), ("1.jpg", jpeg(1))])


@pytest.mark.parametrize("attack", ARCHIVES)
def test_a_hostile_archive_is_refused_by_name_and_nothing_runs(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    build, complaint = ARCHIVES[attack]
    build(tmp_path / "a.tar")
    before = time.process_time()
    with pytest.raises(RefusedArchive, match=complaint) as refused:
        index_shards(["a.tar"], tmp_path)
    assert time.process_time() - before < 5
    assert len(str(refused.value)) < 1000 and str(refused.value).isprintable()
    assert os.listdir(tmp_path) == ["a.tar"]


def test_an_archive_cut_anywhere_is_refused(tmp_path):
    data = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", jpeg(n)) for n in range(3)]).read_bytes()
    end = max(entry.image.offset + entry.image.size for entry in scan(tmp_path / "a.tar")[0])
    for length in chain(range(0, end, 97), range(512, end, 512)):
        (tmp_path / "a.tar").write_bytes(data[:length])
        with pytest.raises(RefusedArchive, match="is truncated"):
            scan(tmp_path / "a.tar")


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MAX_MEMBERS", 50)
    write_tar(tmp_path / "a.tar", [(f"{n}.txt", b"") for n in range(51)])
    with pytest.raises(RefusedArchive, match="more than 50 members"):
        scan(tmp_path / "a.tar")


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_gives_the_names_and_bytes_that_tarfile_reads(tmp_path, style):
    names = ["a.jpg", "d/" + "n" * 90 + ".jpg", "d/ümlaut.jpg"]
    names += [] if style == tarfile.USTAR_FORMAT else ["long/" * 30 + "x" * 120 + ".jpg"]
    path = write_tar(tmp_path / "a.tar", [(name, jpeg(n)) for n, name in enumerate(names)], format=style)
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        expected = [(info.name.encode(), archive.extractfile(info).read()) for info in archive]
    found = [(m.name, data[m.offset : m.offset + m.size]) for m in tar.members(path)]
    assert found == expected


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"format": "ssl_zoo shards 1"}', '{"format": "ssl_zoo shards 1", "shards": 5}'],
)
def test_a_broken_manifest_is_one_clear_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is no manifest of shards"):
        read_manifest(str(tmp_path / "manifest.json"))


def test_a_manifest_records_the_hash_of_every_shard(tmp_path):
    manifest = _make(tmp_path)
    assert read_manifest(str(tmp_path / "shards" / "manifest.json")) == manifest
    for shard in manifest.shards:
        assert hashlib.sha256((tmp_path / "shards" / shard.name).read_bytes()).hexdigest() == shard.sha256
