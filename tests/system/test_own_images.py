"""Any folder of images trains: the odd, the tiny and the unlabelled ones, and every file is accounted for."""

import json
import math
import os
import re
from pathlib import Path

import pytest
from odd_folder import write_odd_folder
from PIL import Image
from tiny_commands import DEMO, TINY

from ssl_zoo.data.names import is_hidden, printable
from ssl_zoo.data.sources import build_splits
from ssl_zoo.data.sources.imagefolder import ImageFolderConfig
from ssl_zoo.tools import eval_net
from ssl_zoo.tools.train_net import main

SETTINGS = [setting for setting in TINY if not setting.startswith(("data.", "probe."))]


def train(folder: Path, run: Path, *arguments: str) -> int:
    data = ["data=imagefolder", f"data.path={folder}", f"output_dir={run}", "trainer.num_steps=2"]
    return main(["--config", str(DEMO), *SETTINGS, *data, "monitor.images_every=0", *arguments])


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 24), (50 * number % 256, 30 * number % 256, 99)).save(folder / name)
    return folder


def classes(*names: str, count: int = 15) -> list[str]:
    return [f"{name}/{number}.png" for name in names for number in range(count)]


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to open what is named locked, as file permissions would for users other than root."""
    real_open, real_scandir = os.open, os.scandir

    def refuse(path: object) -> None:
        if os.path.basename(os.fsdecode(path)).startswith("locked"):
            raise PermissionError(13, "Permission denied")

    def opened(path, *arguments, **options):
        refuse(path)
        return real_open(path, *arguments, **options)

    def scanned(path="."):
        if isinstance(path, (str, bytes, os.PathLike)):
            refuse(path)
        return real_scandir(path)

    monkeypatch.setattr("ssl_zoo.data.files.os.open", opened)
    monkeypatch.setattr("ssl_zoo.data.walk.os.scandir", scanned)


def entries(root: Path) -> tuple[int, int]:
    """Count files, and folders that are not entered, independently of the library."""
    files = folders = 0
    for entry in os.scandir(root):
        is_folder = entry.is_dir(follow_symlinks=False)
        is_run = is_folder and os.path.exists(os.path.join(entry.path, "config.yaml"))
        if is_folder and (is_hidden(entry.name) or is_run or entry.name == "locked_folder"):
            folders += 1
        elif is_folder and os.listdir(entry.path):
            inner = entries(Path(entry.path))
            files, folders = files + inner[0], folders + inner[1]
        else:
            files += 1
    return files, folders


@pytest.mark.slow
def test_two_hundred_odd_files_train_an_epoch_and_every_one_is_accounted_for(
    tmp_path: Path, locked: None, caplog: pytest.LogCaptureFixture
) -> None:
    odd = write_odd_folder(tmp_path / "odd")
    splits = build_splits(ImageFolderConfig(path=str(tmp_path / "odd")))
    num_train, num_test = len(splits.train), len(splits.test)
    with caplog.at_level("INFO"):
        steps = [f"trainer.num_steps={math.ceil(num_train / 16)}", "trainer.checkpoint_every=100"]
        assert train(tmp_path / "odd", tmp_path / "run", *steps) == 0
    [line] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("data: ")]
    assert line.isprintable()
    num_images, num_left_out = map(int, re.search(r"data: (\d+) images.*left out: (\d+) ", line).groups())
    assert num_images == num_train + num_test and num_images + num_left_out == sum(entries(tmp_path / "odd")) > 200
    for kind in ("1 .heic", "dog/again", "cat/broken.png", "cat/pipe.png", "locked_folder", "runs/one", "stray0.png"):
        pattern = kind.replace("1 ", "2 ")
        assert pattern in line, (kind, line)
    left_out = json.loads((tmp_path / "run" / "data.json").read_text())["left_out"]
    assert sum(group["count"] for group in left_out.values()) == num_left_out
    used = {printable(name) for source in (splits.train, splits.test) for name in source.names()}
    assert used >= {printable(name) for name in odd.good | odd.bad | odd.either}
    lines = [line.split("\t") for line in (tmp_path / "run" / "corrupt_samples.txt").read_text().splitlines()]
    assert all(len(line) == 3 and line[2] for line in lines)
    corrupt = [name for _, name, _ in lines]
    assert len(set(corrupt)) == len(corrupt)
    assert {printable(name) for name in odd.bad} <= set(corrupt) <= {printable(n) for n in odd.bad | odd.either}


def test_a_single_image_trains_and_says_why_nothing_is_evaluated(tmp_path: Path, caplog, capsys) -> None:
    folder = images(tmp_path / "images", "only.png")
    with caplog.at_level("INFO"):
        assert train(folder, tmp_path / "run") == 0
    assert "data: 1 image (1 PNG) without labels: 1 train, no test" in caplog.text
    assert "left out knn, logistic: the data has no test image" in caplog.text and "data.test_fraction" in caplog.text
    assert train(folder, tmp_path / "explicit", "probe.evaluators=[knn]") == 1
    assert "evaluator knn can't run: the data has no test image" in capsys.readouterr().err
    assert not (tmp_path / "explicit").exists()


@pytest.mark.slow
def test_a_run_inside_its_data_is_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = images(tmp_path / "images", *classes("a", "b"))
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert train(folder, folder / "runs" / "one", "monitor.images_every=1", "probe.evaluators=[]") == 0
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("data: ")]
    assert all(line.startswith("data: 30 images (30 PNG) in 2 classes") for line in lines)
    assert "1 run directory: runs/one" in lines[1] and list((folder / "runs" / "one" / "figures").glob("*.png"))


@pytest.mark.slow
def test_a_run_on_changed_images_resumes_only_when_told_to_and_evaluation_warns(tmp_path: Path, capsys, caplog) -> None:
    folder, run = images(tmp_path / "images", *classes("a", "b", count=40)), tmp_path / "run"
    assert train(folder, run, "probe.evaluators=[]") == 0
    folder = folder.rename(tmp_path / "elsewhere")
    assert train(folder, run, "probe.evaluators=[]") == 0
    train_image = next(name for name in build_splits(ImageFolderConfig(path=str(folder))).train.names())
    (folder / train_image).unlink()
    capsys.readouterr()
    before = (run / "metrics.jsonl").read_bytes()
    assert train(folder, run, "probe.evaluators=[]") == 1
    [error] = capsys.readouterr().err.splitlines()
    assert f"train images removed: {train_image}" in error and "--accept-changed-data" in error
    assert (run / "metrics.jsonl").read_bytes() == before
    assert eval_net.main(["--run", str(run), "--evaluators", "knn", "probe.knn.k=[3]", "--no-cache"]) == 0
    assert f"train images removed: {train_image}" in caplog.text
    [result] = (run / "eval").rglob("knn*.json")
    recorded = json.loads((run / "data.json").read_text())["train"]["samples"]
    assert json.loads(result.read_text())["data"]["train"]["samples"] == recorded - 1
    assert train(folder, run, "probe.evaluators=[]", "--accept-changed-data") == 0


def test_a_folder_without_any_decodable_image_is_one_clear_error(tmp_path: Path, capsys) -> None:
    for name in classes("a", "b"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"junk")
    assert train(tmp_path / "images", tmp_path / "run") == 1
    [error] = capsys.readouterr().err.splitlines()
    assert re.search(r"none of \d+ images in a row could be decoded.*\.png", error)
