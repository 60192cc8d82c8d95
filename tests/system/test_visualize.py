"""Visualizations of a trained run, as tools/visualize.py writes them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_zoo.tools import export_weights, train_net, visualize
from ssl_zoo.tools.train_net import main as train

ROOT = Path(train_net.__file__).resolve().parents[1]
TINY = [
    *("backbone.embed_dim=48", "backbone.depth=2", "backbone.num_heads=4", "backbone.image_size=32"),
    *("backbone.patch_size=4", "data.image_size=32", "data.num_train=64", "data.num_test=16"),
    *("trainer.batch_size=16", "trainer.num_steps=4", "trainer.checkpoint_every=2", "trainer.precision=fp32"),
    *("monitor.loggers=[jsonl]", "monitor.images_every=0", "probe.every_steps=2", "probe.train_samples=48"),
    *("probe.knn.k=[5]", "probe.evaluators=[knn]"),
]
PREDICTOR = ["method.predictor_dim=32", "method.predictor_depth=1", "method.predictor_heads=4", "masks.min_patches=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("run")
    assert (
        train(["--config", str(ROOT / "configs" / "ijepa" / "demo.yaml"), *TINY, *PREDICTOR, f"output_dir={run}"]) == 0
    )
    return run


def test_a_run_draws_its_test_images_at_any_of_its_checkpoints(run, tmp_path, capsys) -> None:
    for wanted, step in (("last", 4), ("2", 2)):
        assert visualize.main(["--run", str(run), "--checkpoint", wanted, "--num-images", "3"]) == 0
        paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert [path.name for path in paths] == [f"{name}_step_0000000{step}.png" for name in ("masks", "features")]
        with Image.open(paths[1]) as image:
            assert image.size[0] > 5 * 128 and image.size[1] > 3 * 128


def test_a_run_is_visualized_at_another_size_of_images(run, tmp_path, capsys) -> None:
    own = tmp_path / "own.png"
    Image.new("RGB", (60, 40), "red").save(own)
    arguments = ["--run", str(run), "--out", str(tmp_path / "out"), "--images", str(own)]
    assert visualize.main([*arguments, "backbone.image_size=48", "backbone.image_width=32"]) == 0
    with Image.open(tmp_path / "out" / "features_step_00000004.png") as image:
        assert image.size[1] > 3 * 48  # a panel is enlarged three times
    assert visualize.main([*arguments, "backbone.image_size=45"]) == 1
    assert "backbone.image_size=45 is no multiple" in capsys.readouterr().err


def test_the_best_checkpoint_is_the_one_with_the_highest_probe(run, tmp_path, capsys) -> None:
    assert visualize.main(["--run", str(run), "--checkpoint", "best", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out


def test_images_of_the_users_own_and_folders_of_them_are_drawn(run, tmp_path, capsys) -> None:
    (tmp_path / "folder").mkdir()
    for name, size in (("one.png", (60, 40)), ("folder/two.jpg", (33, 90))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    images = [str(tmp_path / "one.png"), str(tmp_path / "folder")]
    assert visualize.main(["--run", str(run), "--images", *images, "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "masks_step_00000004.png") as image:
        assert image.size[1] > 2 * 128


def test_drawing_twice_gives_the_same_picture_and_another_seed_other_masks(run, tmp_path) -> None:
    plotted = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        assert visualize.main(["--run", str(run), "--seed", str(seed), "--out", str(out)]) == 0
        plotted.append((out / "features_step_00000004.png").read_bytes())
    assert plotted[0] == plotted[1] != plotted[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "3"], "has last, best and the steps 2, 4"),
        (["--checkpoint", "newest"], "--checkpoint newest"),
        (["--images", "nowhere.png"], "there is no folder or tar archive nowhere.png"),
        (["--figures", "dreams"], "--figures dreams: there are method, masks, features, pca, attention, neighbours"),
        (["--figures", "attention", "--layers", "2"], "--layers 2: the encoder has blocks 0..1, or -2..-1"),
        (["--figures", "similarity", "--patch", "8,0"], "--patch 8,0: the images have 8 x 8 patches, rows 0..7"),
    ],
)
def test_bad_input_gives_one_line_and_a_nonzero_code(run, capsys, arguments, message) -> None:
    assert visualize.main(["--run", str(run), *arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_directory_that_is_no_run_is_named(tmp_path, capsys) -> None:
    assert visualize.main(["--run", str(tmp_path / "lost")]) == 1
    assert "lost" in capsys.readouterr().err


def test_a_file_that_is_no_image_is_named(run, tmp_path, capsys) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    assert visualize.main(["--run", str(run), "--images", str(tmp_path / "broken.jpg")]) == 1
    assert "broken.jpg" in capsys.readouterr().err


def test_drawing_leaves_the_random_state_alone(run) -> None:
    before = torch.get_rng_state()
    assert visualize.main(["--run", str(run), "--num-images", "2"]) == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_method_of_several_views_draws_them_as_in_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    head = ["method.num_prototypes=16", "method.head_dim=16", "method.bottleneck_dim=8", "views.local_size=16"]
    recipe = str(ROOT / "configs" / "dino" / "demo.yaml")
    assert train(["--config", recipe, *TINY, *head, f"output_dir={tmp_path}"]) == 0
    capsys.readouterr()
    plotted = []
    for seed in (0, 0, 1):
        assert visualize.main(["--run", str(tmp_path), "--num-images", "2", "--seed", str(seed)]) == 0
        [path] = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert path.name == "crops_step_00000004.png"
        with Image.open(path) as image:
            plotted.append(image.tobytes())
    assert plotted[0] == plotted[1] != plotted[2]


def test_figures_are_chosen_by_name_and_take_the_options_of_attention_and_neighbours(run, tmp_path, capsys) -> None:
    names = ["pca", "attention", "neighbours", "similarity", "masks"]
    options = ["--heads", "0", "--layers", "0", "1", "--patch", "2,3", "--num-neighbours", "2"]
    arguments = ["--run", str(run), "--num-images", "2", "--out", str(tmp_path), *options, "--figures", *names]
    assert visualize.main([*arguments, "probe.train_samples=16"]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert [Path(path).name for path in paths] == [f"{name}_step_00000004.png" for name in names]


def test_a_run_and_its_export_become_galleries_of_the_same_encoder(run, tmp_path, capsys) -> None:
    export = tmp_path / "export"
    assert export_weights.main(["--run", str(run), "--out", str(export)]) == 0
    capsys.readouterr()
    pages = []
    sources = (
        ["--run", str(run)],
        ["--weights", str(export)],
        ["--weights", str(export / "target_encoder.safetensors")],
    )
    for number, source in enumerate(sources):
        folder = tmp_path / f"gallery_{number}"
        arguments = [*source, "--num-images", "2", "--gallery", str(folder), "probe.train_samples=16"]
        assert visualize.main([*arguments, "trainer.precision=fp32"]) == 0
        captured = capsys.readouterr()
        assert captured.out.splitlines() == [str(folder / "index.html")]
        pages.append((folder / "index.html").read_text().partition("<section")[2])
    sections = ["masks", "features", "pca", "attention", "neighbours", "similarity"]
    assert [name for name in sections if f'id="{name}"' in pages[0]] == sections
    assert pages[0] == pages[1] == pages[2]


def test_an_export_of_an_encoder_alone_shows_no_predictions_and_names_what_is_missing(run, tmp_path, capsys) -> None:
    export = tmp_path / "export"
    assert export_weights.main(["--run", str(run), "--out", str(export)]) == 0
    manifest = json.loads((export / "manifest.json").read_text())
    del manifest["files"]["predictor.safetensors"]
    (export / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert visualize.main(["--weights", str(export), "--num-images", "2", "backbone.image_size=40"]) == 0
    captured = capsys.readouterr()
    assert "left out: features, since predictor" in captured.err
    assert [Path(line).name for line in captured.out.splitlines()] == ["masks_step_00000004.png"]


def test_a_gallery_leaves_out_the_figures_that_can_not_be_made_and_says_why(run, tmp_path, capsys) -> None:
    arguments = ["--run", str(run), "--num-images", "2", "--num-neighbours", "99", "probe.train_samples=16"]
    assert visualize.main([*arguments, "--gallery", str(tmp_path / "page")]) == 0
    assert "left out: neighbours, since --num-neighbours 99" in capsys.readouterr().err
    assert 'id="attention"' in (tmp_path / "page" / "index.html").read_text()
    assert visualize.main([*arguments, "--figures", "neighbours"]) == 1
