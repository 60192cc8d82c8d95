"""Shards as a source: the order is as for a folder, local and remote; bad samples are replaced."""

import http.server
import json
import os
import pickle
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from iopath.common.file_io import PathHandler
from shard_archives import write_images

from ssl_zoo.data import order
from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.data.decode import CorruptImage
from ssl_zoo.data.evaluation import EvaluationData
from ssl_zoo.data.loader import LoaderConfig, TrainingData
from ssl_zoo.data.shards import place
from ssl_zoo.data.shards.adopt import index_shards
from ssl_zoo.data.shards.inputs import AllImages
from ssl_zoo.data.shards.manifest import file_info, read_manifest
from ssl_zoo.data.shards.place import expand
from ssl_zoo.data.shards.shuffle import windowed
from ssl_zoo.data.shards.write import make_shards
from ssl_zoo.data.sources import SOURCES, Split
from ssl_zoo.data.sources.cifar10 import Cifar10Config
from ssl_zoo.data.sources.imagefolder import ImageFolderConfig
from ssl_zoo.data.sources.webdataset import Shuffle, WebDatasetConfig
from ssl_zoo.io import PATHS
from ssl_zoo.testing.faults.archives import jpeg, write_tar
from ssl_zoo.testing.faults.corpus import BAD_IMAGES, ODD_IMAGES

CLASSES = ("ant", "bee", "cat")
NAMES = [f"{kind}/{number}.jpg" for kind in CLASSES for number in range(10)]
VIEW = ViewSpec("view", (12, 12), ViewConfig(crop_scale=[0.5, 1.0], horizontal_flip=0.5))
EVERYWHERE = [Shuffle.full, Shuffle.shards]


def _uneven(folder, sizes=(5, 11, 7)):
    """Shards of different sizes with a manifest."""
    number = iter(range(sum(sizes)))
    for shard, size in enumerate(sizes):
        files = []
        for sample in (next(number) for _ in range(size)):
            files += [
                (f"{sample:03}.jpg", jpeg(sample, (16 + sample % 3, 16))),
                (f"{sample:03}.cls", b"%d" % (sample % 4)),
            ]
        write_tar(folder / f"s-{shard:03}.tar", files)
    index_shards([f"{folder}/s-{{000..{len(sizes) - 1:03}}}.tar"], folder)
    return folder


def _source(path, split=Split.train, **settings):
    return SOURCES.build(WebDatasetConfig(**{"path": str(path), "test_path": str(path), **settings}), split)


def _data(source, *, batch_size=4, rank=0, world_size=1, num_workers=0, seed=0):
    return TrainingData(
        source, [VIEW], {}, seed=seed, batch_size=batch_size, rank=rank, world_size=world_size,
        config=LoaderConfig(num_workers=num_workers, timeout_s=60.0),
    )  # fmt: skip


@pytest.mark.parametrize("shuffle", EVERYWHERE)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_uneven_shards_give_every_sample_once_an_epoch(tmp_path, shuffle, num_workers, world_size):
    source = _source(_uneven(tmp_path), shuffle=shuffle, shuffle_window=4)
    ranks = [_data(source, rank=r, world_size=world_size, num_workers=num_workers) for r in range(world_size)]
    steps = [list(rank.batches(0, 12)) for rank in ranks]  # 48 rows, two epochs of 23 and a bit
    stream = torch.cat([rank[step].index for step in range(12) for rank in steps])
    assert stream[:23].sort().values.tolist() == stream[23:46].sort().values.tolist() == list(range(23))
    alone = [_data(source).batch(step) for step in range(12)]
    assert torch.equal(stream, torch.cat([batch.index for batch in alone]))
    for step, batch in enumerate(alone):
        assert torch.equal(batch.views["view"], torch.cat([rank[step].views["view"] for rank in steps]))
        assert {rank[step].fingerprint for rank in steps} == {batch.fingerprint}


@pytest.mark.parametrize("shuffle", EVERYWHERE)
def test_a_run_resumed_in_mid_epoch_elsewhere_gets_the_samples_of_the_uninterrupted_run(tmp_path, shuffle):
    folder = _uneven(tmp_path)
    full = [_data(_source(folder, shuffle=shuffle)).batch(step) for step in range(8)]
    fresh = _source(folder, shuffle=shuffle)  # another process would open the shards again
    resumed = [list(_data(fresh, rank=r, world_size=2, num_workers=2 - r).batches(3, 8)) for r in range(2)]
    for position, batch in enumerate(full[3:]):
        assert torch.equal(batch.index, torch.cat([rank[position].index for rank in resumed]))
        assert torch.equal(batch.views["view"], torch.cat([rank[position].views["view"] for rank in resumed]))


def test_shard_order_goes_through_one_shard_after_the_other_within_the_window():
    shard = torch.arange(6).repeat_interleave(torch.tensor([40, 10, 70, 30, 50, 20]))
    offset = torch.cat([torch.randperm(int(n)) for n in shard.bincount()])
    plain = windowed(shard, offset, 1, torch.Generator().manual_seed(0))
    changes = (shard[plain].diff() != 0).sum()
    assert changes == 5 and all((offset[plain][shard[plain] == s].diff() > 0).all() for s in range(6))
    mixed = windowed(shard, offset, 25, torch.Generator().manual_seed(0))
    moved = (plain.argsort() - mixed.argsort()).abs()
    assert mixed.sort().values.tolist() == list(range(220))
    assert 15 < moved.max() < 25 and moved.float().mean() > 4


def test_shard_order_differs_between_epochs_and_seeds(tmp_path):
    source = _source(_uneven(tmp_path), shuffle=Shuffle.shards, shuffle_window=2)
    orders = [tuple(source.epoch_order(seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6
    assert orders[1] == tuple(
        _source(source.config.path, shuffle=Shuffle.shards, shuffle_window=2).epoch_order(0, 1).tolist()
    )


def test_full_order_is_that_of_every_other_source(tmp_path):
    assert torch.equal(_data(_source(_uneven(tmp_path))).indices(2), order.indices(0, 2, 4, 23))


def test_samples_are_those_of_the_folder_that_shards_were_made_from(tmp_path):
    write_images(tmp_path / "images", NAMES)
    make_shards(AllImages(str(tmp_path / "images")), tmp_path / "out", name="", shard_bytes=30_000)
    for split in Split:
        folder = SOURCES.build(ImageFolderConfig(path=str(tmp_path / "images")), split)
        shards = SOURCES.build(WebDatasetConfig(path=str(tmp_path / "out")), split)
        names = [shards.sample_name(i) for i in range(len(shards))]
        assert len(read_manifest(str(tmp_path / "out" / "manifest.json")).shards) == 3
        assert [name.partition("/")[2] for name in names] == [folder.sample_name(i) for i in range(len(folder))]
        assert torch.equal(shards.labels, folder.labels) and tuple(shards.classes) == tuple(folder.classes)
        for index in range(len(folder)):
            assert shards.encoded(index) == folder.encoded(index)
        assert torch.equal(_data(shards).batch(3).views["view"], _data(folder).batch(3).views["view"])


def test_shards_of_cifar10_give_the_batches_of_cifar10(tmp_path, data_root):
    source = SOURCES.build(Cifar10Config(root=str(data_root)), Split.test)
    make_shards(source, tmp_path, name="", shard_bytes=12 << 20)
    shards = _source(tmp_path)
    assert torch.equal(shards.labels, source.labels)
    for step in (0, 7):
        one, other = _data(source, batch_size=64).batch(step), _data(shards, batch_size=64).batch(step)
        assert torch.equal(one.index, other.index) and torch.equal(one.views["view"], other.views["view"])
        for index in one.index.tolist():
            stem = source.sample_name(index).removesuffix(".jpg")
            assert shards.sample_name(index).partition("/")[2].removesuffix(".png") == stem


def test_an_evaluation_reads_shards_with_their_labels(tmp_path):
    source = _source(_uneven(tmp_path), Split.test)
    data = EvaluationData(source, size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, num_workers=1)
    [(_, labels, index)] = list(data)
    assert labels.tolist() == [sample % 4 for sample in range(23)] and index.tolist() == list(range(23))


def test_some_shards_of_a_folder_are_chosen_by_braces(tmp_path):
    _uneven(tmp_path)
    source = _source(tmp_path / "s-{000..001}.tar", test_path=str(tmp_path / "s-002.tar"))
    test = SOURCES.build(source.config, Split.test)
    assert len(source) == 16 and len(test) == 7
    assert {test.sample_name(index).partition("/")[0] for index in range(7)} == {"s-002.tar"}
    with pytest.raises(ValueError, match=r"1 of the shards .* are not in .*manifest\.json, e\.g\. .*s-003\.tar"):
        _source(tmp_path / "s-{001..003}.tar")
    with pytest.raises(ValueError, match="brace has no partner"):
        expand("a-{000..1")
    with pytest.raises(ValueError, match="stands for 1000000000 shards"):
        expand("a-{1..1000000000}.tar")


def test_without_a_test_path_the_held_out_part_is_that_of_a_folder(tmp_path):
    _uneven(tmp_path)
    train, test = (_source(tmp_path, split, test_path=None, test_fraction=0.3) for split in Split)
    assert len(train) + len(test) == 23 and 2 <= len(test) <= 12
    names = [{source.sample_name(index) for index in range(len(source))} for source in (train, test)]
    assert not names[0] & names[1]


@pytest.mark.parametrize(
    ("train", "test", "classes"),
    [
        ("ant bee cat", "ant cat", "ant bee cat"),
        ("ant cat", "ant bee cat", "ant bee cat"),
        ("ant dog", "bee cat", "ant bee cat dog"),
        ("ant", "cafe\u0301 ant", "ant cafe\u0301"),
    ],
)
def test_train_and_test_shards_made_apart_have_one_numbering_of_the_classes_of_both(tmp_path, train, test, classes):
    for name, kinds in (("a", train), ("b", test)):
        write_images(tmp_path / name, [f"{kind}/{number}.jpg" for kind in kinds.split() for number in range(3)])
        make_shards(AllImages(str(tmp_path / name)), tmp_path / f"{name}_shards", name="", shard_bytes=10**6)
    for split in Split:
        source = _source(tmp_path / "a_shards", split, test_path=str(tmp_path / "b_shards"))
        assert list(source.classes) == classes.split() and source.num_classes == len(classes.split())
        for row, label in enumerate(source.labels.tolist()):
            assert source.sample_name(row).split("/")[1] == source.classes[label]


def test_missing_manifests_and_shards_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"write one for existing shards with python tools/make_shards\.py --index"):
        _source(tmp_path)
    _uneven(tmp_path)
    (tmp_path / "s-001.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"s-001\.tar has 0 bytes, not the \d+ of the manifest"):
        _source(tmp_path)
    (tmp_path / "s-001.tar").unlink()
    with pytest.raises(ValueError, match=r"s-001\.tar is missing, but is listed in the manifest"):
        _source(tmp_path)
    with pytest.raises(ValueError, match=r"needs data\.path=FOLDER with shards"):
        SOURCES.build(WebDatasetConfig(), Split.train)


def test_shards_can_be_sent_to_processes_without_shared_memory(tmp_path):
    source = _source(_uneven(tmp_path))
    assert torch.equal(pickle.loads(pickle.dumps(source)).image(9), source.image(9))


# --- at an address ----------------------------------------------------------------------------------------------------


class _Handler(http.server.SimpleHTTPRequestHandler):
    log_message = lambda *arguments: None  # noqa: E731

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.end_headers()
        elif self.path in self.server.cut:
            self.server.cut.remove(self.path)
            data = Path(self.directory, self.path[1:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
        else:
            super().do_GET()


@contextmanager
def _served(folder):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        server.asked, server.redirects, server.cut = [], {}, []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_remote_shards_are_copied_once_when_first_read(tmp_path):
    local = _source(_uneven(tmp_path / "data"))
    with _served(tmp_path / "data") as server:
        remote = _source(server.address, cache=str(tmp_path / "cache"))
        assert sorted(set(server.asked)) == ["/index.safetensors", "/manifest.json"]
        for index in range(len(local)):
            assert torch.equal(local.image(index), remote.image(index))
        assert sorted(path for path in server.asked if path.endswith(".tar")) == [f"/s-00{n}.tar" for n in range(3)]
        asked = len(server.asked)
        again = _source(f"{server.address}/s-{{000..002}}.tar", cache=str(tmp_path / "cache"))
        batches = list(_data(again, num_workers=2).batches(0, 5))
        assert server.asked[asked:] == ["/manifest.json"]
    expected = [_data(local).batch(step) for step in range(5)]
    assert all(torch.equal(a.views["view"], b.views["view"]) for a, b in zip(batches, expected, strict=True))


@pytest.mark.parametrize("is_known", [True, False])
def test_a_broken_connection_is_retried_a_limited_number_of_times(tmp_path, monkeypatch, is_known):
    monkeypatch.setattr(place, "_PAUSE_S", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = _source(_uneven(tmp_path / "data"))
    with _served(tmp_path / "data") as server:

        def read():
            if is_known:
                return _source(server.address).image(0)
            index_shards([f"{server.address}/s-000.tar"], tmp_path / "here")
            return _source(tmp_path / "here").image(0)

        server.cut = ["/s-000.tar"] * 3
        with pytest.raises(
            ValueError, match=r"s-000\.tar can't be copied: OSError: the connection ended \d+ bytes early"
        ):
            read()
        assert server.cut == [] and not [p for p in (tmp_path / "cache").rglob("*.t??") if p.suffix != ".lock"]
        server.cut = ["/s-000.tar"] * 2
        assert torch.equal(read(), local.image(0))


def test_a_remote_shard_with_another_content_is_refused_and_not_kept(tmp_path):
    _uneven(tmp_path / "data")
    data = bytearray((tmp_path / "data" / "s-001.tar").read_bytes())
    data[700] ^= 1
    for content in (bytes(data), bytes(data) * 3):
        (tmp_path / "data" / "s-001.tar").write_bytes(content)
        with _served(tmp_path / "data") as server:
            source = _source(server.address, cache=str(tmp_path / "cache"))
            with pytest.raises(ValueError, match=r"s-001\.tar is not the file of the manifest"):
                source.image(7)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix in (".tmp", ".tar")]


def test_an_address_without_shards_is_one_clear_error(tmp_path):
    _uneven(tmp_path / "data")
    (tmp_path / "data" / "s-000.tar").unlink()
    with _served(tmp_path / "data") as server:
        with pytest.raises(ValueError, match=r"/nowhere/manifest\.json can't be read \(HTTPError: .*404"):
            _source(f"{server.address}/nowhere", cache=str(tmp_path / "cache"))
        source = _source(server.address, cache=str(tmp_path / "cache"))
        with pytest.raises(ValueError, match=r"s-000\.tar can't be copied: HTTPError: .*404"):
            next(_data(source, batch_size=23, num_workers=1).batches(0, 1))


def test_shards_at_an_address_get_a_manifest_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = _source(_uneven(tmp_path / "data"))
    with _served(tmp_path / "data") as server:
        index_shards([f"{server.address}/s-{{000..002}}.tar"], tmp_path / "here")
        source = _source(tmp_path / "here")
        assert torch.equal(source.image(20), local.image(20)) and source.labels.tolist() == local.labels.tolist()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "pipe:touch CANARY"])
def test_a_redirect_is_only_followed_to_the_web(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    with _served(tmp_path) as server:
        server.redirects["/manifest.json"] = target
        with pytest.raises(ValueError, match=r"manifest\.json can't be read"):
            _source(server.address)
    assert os.listdir(tmp_path) == []


def test_a_scheme_that_a_plugin_registers_is_read_and_no_other(tmp_path):
    class Memory(PathHandler):
        def _get_supported_prefixes(self):
            return ["memory-of-test://"]

        def _open(self, path, mode="r", buffering=-1, **kwargs):
            return open(tmp_path / "data" / path.rpartition("/")[2], mode)

    _uneven(tmp_path / "data")
    with pytest.raises(ValueError, match="there is no handler for memory-of-test:"):
        _source("memory-of-test://x")
    PATHS.register_handler(Memory())
    assert len(_source("memory-of-test://x", cache=str(tmp_path / "cache")).image(3)) == 3


@pytest.mark.parametrize(
    "path", ["pipe:touch CANARY; cat a.tar", "file:a.tar", "s3://bucket/a.tar", "ftp://host/a.tar", "PIPE:touch CANARY"]
)
def test_commands_and_unknown_schemes_are_refused_everywhere(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    scheme = path.partition(":")[0]
    for open_it in (lambda: _source(path), lambda: index_shards([path], tmp_path), lambda: PATHS.is_remote(path)):
        with pytest.raises(ValueError, match=f"there is no handler for {scheme}:"):
            open_it()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("pipe:touch CANARY", "there is no handler for pipe:"),
        ("../secret.tar", "is no manifest"),
        ("a/../../secret.tar", "does not lie beside it"),
        ("sub\\\\secret.tar", "does not lie beside it"),
    ],
)
def test_a_manifest_can_not_refer_to_files_elsewhere(tmp_path, monkeypatch, name, complaint):
    monkeypatch.chdir(tmp_path)
    text = (_uneven(tmp_path / "data") / "manifest.json").read_text()
    (tmp_path / "data" / "manifest.json").write_text(text.replace("s-001.tar", name))
    with pytest.raises(ValueError, match=complaint):
        _source(tmp_path / "data").image(7)
    assert os.listdir(tmp_path) == ["data"]


def test_a_remote_manifest_can_not_refer_to_local_files(tmp_path):
    text = (_uneven(tmp_path / "data") / "manifest.json").read_text()
    (tmp_path / "data" / "manifest.json").write_text(text.replace("s-001.tar", "/etc/passwd"))
    with _served(tmp_path / "data") as server, pytest.raises(ValueError, match="does not lie beside it"):
        _source(server.address, cache=str(tmp_path / "cache"))


# --- hostile and broken content ---------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [(f"{n:04}.jpg", jpeg(n)) for n in range(50)] + [(name, data) for name, (data, _) in BAD_IMAGES.items()]
    write_tar(tmp_path / "data" / "a.tar", [*files, *ODD_IMAGES.items()])
    index_shards([str(tmp_path / "data" / "a.tar")], tmp_path / "data")
    yield _source(tmp_path / "data", max_image_bytes=150_000)
    assert os.listdir(tmp_path) == ["data"]


def test_bad_images_are_replaced_and_reported_and_training_continues(hostile):
    batches = list(_data(hostile, batch_size=32, num_workers=2).batches(0, 2))
    assert len(hostile) == 63 and [batch.num_images for batch in batches] == [32, 32]
    reasons = {sample.name.partition("/")[2]: sample.reason for batch in batches for sample in batch.corrupt}
    assert set(reasons) == set(BAD_IMAGES)
    for name, (_, expected) in BAD_IMAGES.items():
        assert expected in reasons[name]


def test_unusual_but_complete_images_are_read(hostile):
    numbers = {hostile.sample_name(index).partition("/")[2]: index for index in range(len(hostile))}
    assert all(hostile.image(numbers[name]).shape == (3, 16, 24) for name in ODD_IMAGES)


def test_a_file_that_is_too_large_is_not_even_read(hostile, monkeypatch):
    [index] = [i for i in range(len(hostile)) if hostile.sample_name(i).endswith("large.jpg")]
    monkeypatch.setattr(os, "pread", lambda *arguments: pytest.fail("it was read"))
    with pytest.raises(CorruptImage, match="200"):
        hostile.image(index)


def test_an_image_of_another_size_than_the_manifest_says_is_replaced(tmp_path):
    for number in range(8):
        size = (20, 20) if number == 3 else (16, 16)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.jpg").write_bytes(jpeg(number, size))
    source = AllImages(str(tmp_path / "images"))
    source.image_size = (16, 16)
    make_shards(source, tmp_path / "out", name="", shard_bytes=10**6)
    batch = _data(_source(tmp_path / "out"), batch_size=8).batch(0)
    [corrupt] = batch.corrupt
    assert (
        corrupt.name == "shard-00000.tar/3.jpg"
        and "(20, 20) pixels instead of the manifest's (16, 16)" in corrupt.reason
    )
    assert batch.index.sort().values.tolist() == [0, 1, 2, 4, 4, 5, 6, 7]


@pytest.mark.parametrize("column", ["shard", "offset", "size", "name_stop"])
@pytest.mark.parametrize("value", [-1, 1 << 61])
def test_an_index_that_points_elsewhere_is_refused(tmp_path, column, value):
    from safetensors.torch import load_file, save_file

    _uneven(tmp_path)
    columns = load_file(tmp_path / "index.safetensors")
    columns[column] = columns[column].clone()
    columns[column][3] = value
    save_file(columns, tmp_path / "index.safetensors")
    _record_index(tmp_path)
    with pytest.raises(ValueError, match=r"index\.safetensors: it points outside of the shards"):
        _source(tmp_path)


@pytest.mark.parametrize("content", [b"", b"cos\nsystem\n(S'touch CANARY'\ntR.", b"\xff" * 64])
def test_a_broken_index_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(_uneven(tmp_path))
    Path("index.safetensors").write_bytes(content)
    _record_index(tmp_path)
    with pytest.raises(ValueError, match="it is no index of shards"):
        _source(tmp_path)
    assert not os.path.exists("CANARY")


def _record_index(folder):
    """The attacker's manifest vouches for the attacker's index."""
    manifest = json.loads((folder / "manifest.json").read_text())
    info = file_info(folder / "index.safetensors")
    manifest["index"] |= {"bytes": info.bytes, "sha256": info.sha256}
    (folder / "manifest.json").write_text(json.dumps(manifest))
