"""Decoders of predictions, as somebody trains, resumes, shows and measures them with the tools."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_commands import DEMO, TINY

from ssl_zoo.decoding import measure
from ssl_zoo.engine.checkpoint.folders import list_checkpoints
from ssl_zoo.tools import train_decoder, train_net, visualize

RUN = ["trainer.num_steps=4", "trainer.checkpoint_every=2", "probe.evaluators=[]", "monitor.images_every=0"]
DECODER = [
    *("block_size=8", "sampling_steps=1", "network.dim=16", "network.num_heads=2", "trainer.batch_size=4"),
    *("trainer.num_steps=4", "trainer.precision=fp32", "monitor.loggers=[jsonl]", "monitor.log_every=1"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    assert train_net.main(["--config", str(DEMO), *TINY, *RUN, f"output_dir={run}"]) == 0
    assert train_decoder.main(["--run", str(run), *DECODER, "monitor.images_every=4"]) == 0
    return run


def test_the_decoder_records_whose_predictions_it_decodes(run):
    [checkpoint] = list_checkpoints(run / "decoder")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    weights = json.loads((list_checkpoints(run)[-1] / "manifest.json").read_text())["files"]["method.safetensors"]
    assert manifest["config"]["predictor"] == {"step": 4, "sha256": [weights["sha256"]]}
    assert manifest["run"] == run.name
    assert (run / "decoder" / "figures" / "decoded_step_00000004.png").is_file()


def test_the_written_config_trains_the_same_decoder(run, tmp_path):
    arguments = ["--run", str(run), "--config", str(run / "decoder" / "config.yaml"), "--out", str(tmp_path)]
    assert train_decoder.main(arguments) == 0
    paths = [list_checkpoints(folder)[-1] / "method.safetensors" for folder in (run / "decoder", tmp_path)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_samples_are_drawn_for_images_and_only_for_the_weights_that_are_decoded(run, tmp_path, capsys):
    assert visualize.main(["--run", str(run), "--decode", "--num-images", "2", "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "decoded_step_00000004.png") as image:
        assert image.size[0] > 6 * 96  # image, context, four samples
    assert visualize.main(["--run", str(run), "--decode", "--checkpoint", "2"]) == 1
    assert "decodes step 4 of" in capsys.readouterr().err


def test_a_run_without_a_decoder_is_told_the_command(run, tmp_path, capsys):
    arguments = ["--run", str(run), "--measure", "--out", str(tmp_path / "none")]
    assert train_decoder.main(arguments) == 1
    assert f"tools/train_decoder.py --run {run} --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.dims=16", "did you mean network.dim?"),
        ("block_size=9", "block_size=9 is no multiple of 4"),
        ("trainer.num_steps=0", "trainer.num_steps=0 must be at least 1"),
        ("trainer.num_steps=8", "trainer.num_steps: 4 in the checkpoint, 8 in this run"),
        ("random_init=true", "predictor.sha256"),
    ],
)
def test_wrong_settings_are_refused(run, override, message, capsys):
    assert train_decoder.main(["--run", str(run), *DECODER, override]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_a_method_without_predictions_is_refused_with_the_methods_that_can(tmp_path, capsys):
    tiny = [word for word in TINY if not word.startswith(("method.", "masks."))]
    recipe = str(DEMO.parent.parent / "dino" / "demo.yaml")
    assert train_net.main(["--config", recipe, *tiny, *RUN, "trainer.num_steps=1", f"output_dir={tmp_path}"]) == 0
    assert train_decoder.main(["--run", str(tmp_path), *DECODER]) == 1
    assert "DINO predicts no target blocks" in (error := capsys.readouterr().err) and "ijepa" in error


@pytest.mark.slow
def test_a_measurement_is_printed_and_recorded(run, monkeypatch, capsys):
    monkeypatch.setattr(measure, "_READOUT_STEPS", 5)
    assert train_decoder.main(["--run", str(run), "--measure", "--sample-seeds", "0", "1"]) == 0
    assert "samples, another scene (chance)" in capsys.readouterr().out
    recorded = json.loads((run / "decoder" / "measurement.json").read_text())
    assert len(recorded["samples"]) == 2 and recorded["num_blocks"] > 0
