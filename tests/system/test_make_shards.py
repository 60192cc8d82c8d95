"""Shards as a user makes, checks and trains on them."""

import json
from pathlib import Path

import pytest
from shard_archives import write_images

from ssl_zoo.engine.checkpoint.state import list_checkpoints
from ssl_zoo.testing.faults.archives import jpeg, write_tar
from ssl_zoo.tools import list as list_tool
from ssl_zoo.tools import make_shards, train_net

ROOT = Path(make_shards.__file__).resolve().parents[1]
TINY = [
    *("backbone.embed_dim=48", "backbone.depth=1", "backbone.num_heads=4", "backbone.image_size=32"),
    *("backbone.patch_size=4", "method.predictor_dim=32", "method.predictor_depth=1", "method.predictor_heads=4"),
    *("masks.min_patches=4", "trainer.batch_size=8", "trainer.num_steps=4", "trainer.checkpoint_every=2"),
    *("trainer.precision=fp32", "monitor.loggers=[jsonl]", "monitor.images_every=0", "monitor.log_every=1"),
]
TIMING = ("images_per_second", "data_wait", "memory_bytes")
PARTS = {"path": "train", "test_path": "test"}
NAMES = [f"{kind}/{number}.jpg" for kind in ("ant", "bee") for number in range(12)]


def _run(*words):
    return make_shards.main([str(word) for word in words])


def _train(run, *overrides):
    recipe = str(ROOT / "configs" / "ijepa" / "demo.yaml")
    return train_net.main(["--config", recipe, *TINY, f"output_dir={run}", *map(str, overrides)])


def _records(run):
    """Digest of the samples and loss of every step."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: (row["samples"], row["loss"]) for row in rows if "loss" in row}


def test_a_folder_becomes_shards_that_check_and_that_damage_fails(tmp_path, capsys):
    write_images(tmp_path / "images", NAMES)
    assert _run(tmp_path / "images", tmp_path / "out", "--shard-size", "20KB", "--workers", "2", "--check") == 0
    assert "no problems found" in capsys.readouterr().out
    shard = tmp_path / "out" / "shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert _run("--check", tmp_path / "out") == 1
    assert "shard-00001.tar has" in capsys.readouterr().err
    assert _run(tmp_path / "images", tmp_path / "out", "--shard-size", "20KB") == 0
    assert _run("--check", tmp_path / "out") == 0


def test_a_source_becomes_a_set_of_shards_per_split(tmp_path):
    scenes = ["data=scenes", "data.image_size=16", "data.num_train=12", "data.num_test=6"]
    assert _run(*scenes, tmp_path / "both", "--workers", "0") == 0
    assert _run(*scenes, tmp_path / "one", "--split", "test", "--workers", "0") == 0
    manifests = {
        path: json.loads((tmp_path / path / "manifest.json").read_text()) for path in ("both/train", "one/test")
    }
    assert [manifest["samples"] for manifest in manifests.values()] == [12, 6]
    assert manifests["one/test"]["source"] == "scenes, test split"
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["test", "train"]
    assert not (tmp_path / "one" / "train").exists()


def test_a_run_on_shards_equals_that_on_the_folder_with_its_probe(tmp_path):
    for part in ("train", "test"):
        write_images(tmp_path / "images" / part, NAMES)
        assert (
            _run(tmp_path / "images" / part, tmp_path / "shards" / part, "--shard-size", "20KB", "--workers", "0") == 0
        )
    folder = ["data=imagefolder", f"data.path={tmp_path / 'images'}"]
    shards = ["data=webdataset", *(f"data.{key}={tmp_path / 'shards' / part}" for key, part in PARTS.items())]
    records = []
    for name, data in (("folder", folder), ("shards", shards)):
        assert _train(tmp_path / name, *data, "probe.evaluators=[knn]", "probe.knn.k=[3]", "probe.label=null") == 0
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        records.append([{key: value for key, value in line.items() if key not in TIMING} for line in lines])
    assert records[0] == records[1] and "knn3" in records[0][-1]


def test_a_run_on_shards_resumed_in_mid_epoch_with_workers_equals_the_whole_run(tmp_path):
    write_images(tmp_path / "images", NAMES)
    assert _run(tmp_path / "images", tmp_path / "out", "--shard-size", "20KB", "--workers", "0") == 0
    data = ["data=webdataset", f"data.path={tmp_path / 'out'}", "data.shuffle=shards", "data.shuffle_window=5"]
    data += ["probe.evaluators=[knn]", "probe.knn.k=[3]", "data.test_fraction=0.3"]
    assert _train(tmp_path / "full", *data) == 0
    middle = list_checkpoints(tmp_path / "full")[0]
    assert _train(tmp_path / "rest", *data, "loader.num_workers=2", "--resume", middle) == 0
    full, rest = _records(tmp_path / "full"), _records(tmp_path / "rest")
    assert list(rest) == [3, 4] and rest == {step: full[step] for step in rest}


def test_a_run_goes_on_over_broken_samples_until_they_are_too_many(tmp_path, capsys):
    files = [(f"{n:02}.jpg", b"" if n == 5 else jpeg(n, (40, 40))) for n in range(40)]
    write_tar(tmp_path / "data" / "a.tar", files)
    assert _run("--index", tmp_path / "data" / "a.tar", tmp_path / "data") == 0
    data = ["data=webdataset", f"data.path={tmp_path / 'data'}", f"data.test_path={tmp_path / 'data'}"]
    data += ["probe.evaluators=[]", "trainer.num_steps=10"]
    assert _train(tmp_path / "tolerant", *data, "loader.max_corrupt_fraction=0.5") == 0
    assert "a.tar/05.jpg\tthe file is empty" in (tmp_path / "tolerant" / "corrupt_samples.txt").read_text()
    assert _train(tmp_path / "strict", *data, "loader.max_corrupt_fraction=0.0") == 1
    assert "loader.max_corrupt_fraction=0.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{root}/nowhere", "{root}/out"], "there is no folder or tar archive"),
        (["data=cifar11", "{root}/out"], "Did you mean data=cifar10?"),
        (["data=scenes", "data.sede=1", "{root}/out"], "did you mean data.seed?"),
        (["--index", "{root}/a.tar", "{root}/out"], "there is no shard"),
        (["--index", "pipe:touch CANARY", "{root}/out"], "there is no handler for pipe:"),
        (["--check", "{root}/nowhere"], "Shards need a manifest"),
    ],
)
def test_mistakes_are_one_clear_error(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert _run(*(word.format(root=tmp_path) for word in words)) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("words", [["out"], ["a", "b", "out"], ["data=scenes"], ["a", "out", "--shard-size", "0MB"]])
def test_a_wrong_number_of_words_prints_the_usage(words, capsys):
    with pytest.raises(SystemExit):
        _run(*words)
    assert "usage:" in capsys.readouterr().err


def test_the_list_of_sources_names_shards_and_mixtures(capsys):
    assert list_tool.main(["data"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert "shards" in lines["webdataset"].lower() and "several sources" in lines["mixture"].lower()
