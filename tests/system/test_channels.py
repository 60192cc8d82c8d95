"""Grey and many-channel images as a user trains on them, evaluates, shows, exports and measures them."""

import json
from pathlib import Path

import numpy
import pytest
import tifffile
import yaml
from PIL import Image
from safetensors.torch import load_file

from ssl_zoo.tools import channel_stats, eval_net, export_weights, make_shards, train_net, visualize

ROOT = Path(train_net.__file__).resolve().parents[1]
TINY = [
    *("backbone.embed_dim=48", "backbone.depth=1", "backbone.num_heads=4", "backbone.image_size=16"),
    *("backbone.patch_size=4", "method.decoder_dim=32", "method.decoder_depth=1", "trainer.batch_size=8"),
    *("trainer.num_steps=2", "trainer.checkpoint_every=2", "trainer.precision=fp32", "monitor.loggers=[jsonl]"),
    *("monitor.images_every=2", "probe.evaluators=[knn]", "probe.knn.k=[3]", "optim.warmup_epochs=0"),
]


def images(folder: Path, channels: int) -> Path:
    """Write two classes of 12-bit values: grey PNG, or TIFF of several bands."""
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        random = numpy.random.default_rng(ord(label))
        for number in range(20):
            pixels = numpy.kron(random.integers(0, 4096, (4, 4, channels)), numpy.ones((6, 6, 1), int)).astype("u2")
            if channels == 1:
                Image.fromarray(pixels[..., 0]).save(folder / label / f"{number}.png")
            else:
                path = folder / label / f"{number}.tif"
                tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_a_run_on_other_channels_is_trained_evaluated_shown_and_exported(channels, tmp_path, capsys):
    folder, run = images(tmp_path / "images", channels), tmp_path / "run"
    data = ["data=imagefolder", f"data.path={folder}", "data.test_fraction=0.4", "data.intensity_range=[0,4095]"]
    settings = [*TINY, *data, f"backbone.in_channels={channels}", f"output_dir={run}"]
    assert train_net.main(["--config", str(ROOT / "configs" / "mae" / "demo.yaml"), *settings]) == 0
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["views"]["mean"] == ([0.459] if channels == 1 else [0.5] * 5)
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(losses) and not (run / "corrupt_samples.txt").exists()

    assert eval_net.main(["--run", str(run), "--evaluators", "knn", "--no-cache", "probe.knn.k=[3]"]) == 0
    assert visualize.main(["--run", str(run), "--images", str(folder / "a"), "--num-images", "2"]) == 0
    with Image.open(run / "figures" / "visualize" / "reconstructions_step_00000002.png") as shown:
        panels = numpy.array(shown)[-100:].astype(int)  # within the last row of images
        assert shown.mode == "RGB" and ((panels[..., 0] == panels[..., 1]).all() == (channels == 1))

    assert export_weights.main(["--run", str(run)]) == 0
    [exported] = (run / "export").iterdir()
    assert load_file(exported / "encoder.safetensors")["patch_embed.proj.weight"].shape == (48, channels, 4, 4)
    assert json.loads((exported / "manifest.json").read_text())["transform"]["channels"] == channels


def test_an_image_of_other_channels_is_an_error_of_one_line(tmp_path, capsys):
    folder = images(tmp_path / "images", 5)
    recipe = ["--config", str(ROOT / "configs" / "mae" / "demo.yaml"), *TINY, "data=imagefolder", f"data.path={folder}"]
    for dry in ([], ["--dry-run"]):
        assert train_net.main([*recipe, f"output_dir={tmp_path / 'run'}", *dry]) == 1
        [line] = capsys.readouterr().err.strip().splitlines()
        assert "an image of 5 channels can't" in line and "set backbone.in_channels" in line.lower()


def test_measured_statistics_are_lines_of_a_recipe(tmp_path, capsys):
    folder = images(tmp_path / "images", 1)
    assert channel_stats.main([str(folder), "--in-channels", "1", "--num-images", "10"]) == 0
    text = capsys.readouterr().out
    lines = yaml.safe_load(text)
    assert 0.4 < lines["views"]["mean"][0] < 0.6 and 0.2 < lines["views"]["std"][0] < 0.4
    low, high = lines["data"]["intensity_range"]
    assert 0 <= low < 300 and 3800 < high < 4096 and "# 10 images of uint16 pixels, 0 unreadable" in text
    assert channel_stats.main(["data=scenes", "data.num_train=20", "data.image_size=16"]) == 0
    assert len(yaml.safe_load(capsys.readouterr().out)["views"]["mean"]) == 3
    assert channel_stats.main([str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_resized_shards_keep_their_bands(tmp_path, capsys):
    folder, out = images(tmp_path / "images", 5), tmp_path / "out"
    assert make_shards.main([str(folder), str(tmp_path / "copied"), "--workers", "0"]) == 0
    assert "left out" not in capsys.readouterr().out
    assert make_shards.main([str(folder), str(tmp_path / "wrong"), "--resize-short", "12", "--workers", "0"]) == 1
    assert "--in-channels" in capsys.readouterr().err
    words = [str(folder), str(out), "--resize-short", "12", "--in-channels", "5", "--workers", "0"]
    assert make_shards.main(words) == 0
    capsys.readouterr()
    assert channel_stats.main(["data=webdataset", f"data.path={out}", "--in-channels", "5"]) == 0
    assert len(yaml.safe_load(capsys.readouterr().out)["views"]["mean"]) == 5
