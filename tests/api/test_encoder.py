"""``ssl_zoo.load`` and what its encoders compute, against the evaluation's own rendering and features."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from tiny_commands import DEMO

import ssl_zoo
from ssl_zoo.api.exporting import export_run
from ssl_zoo.api.transform import Transform
from ssl_zoo.data.evaluation import EvaluationData
from ssl_zoo.data.sources.base import Split
from ssl_zoo.data.sources.imagefolder import ImageFolder, ImageFolderConfig
from ssl_zoo.eval.features import Pooling, extract
from ssl_zoo.interop.manifest import Preprocessing

TINY = {
    **{"backbone.embed_dim": 48, "backbone.depth": 2, "backbone.num_heads": 4, "backbone.image_size": 32},
    **{"backbone.patch_size": 4, "backbone.class_token": True, "data.image_size": 32, "data.num_train": 64},
    **{"data.num_test": 32, "masks.min_patches": 4, "method.predictor_dim": 32, "method.predictor_depth": 1},
    **{"method.predictor_heads": 4, "probe.evaluators": ["knn"], "probe.knn.k": [5], "trainer.batch_size": 16},
    **{"trainer.num_steps": 4, "trainer.checkpoint_every": 2, "trainer.precision": "fp32"},
    **{"monitor.loggers": ["jsonl"], "monitor.images_every": 0},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ssl_zoo.Run:
    folder = tmp_path_factory.mktemp("run")
    return ssl_zoo.train(DEMO, {**TINY, "output_dir": folder}, verbose=False)


@pytest.fixture(scope="module")
def folder(run: ssl_zoo.Run) -> Path:
    return export_run(run.path).folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of several sizes, formats and modes, as an image folder with one class."""
    generator = numpy.random.default_rng(0)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for number, (mode, size, ending) in enumerate(
        [("RGB", (40, 50), "png"), ("RGB", (90, 64), "jpg"), ("L", (40, 40), "png"), ("RGB", (20, 30), "webp")]
    ):
        shape = (size[1], size[0], 3) if mode == "RGB" else size[::-1]
        image = Image.fromarray(generator.integers(0, 256, shape, dtype=numpy.uint8), mode=mode)
        image.save(tmp_path / "photos" / "a" / f"{number}.{ending}")
    return tmp_path / "photos"


def evaluation_data(photos: Path, transform: Transform) -> EvaluationData:
    source = ImageFolder(ImageFolderConfig(path=str(photos), test_fraction=0.0001), Split.train)
    return EvaluationData(source, size=transform.size, mean=transform.mean, std=transform.std)


def test_the_transform_renders_files_as_evaluations_do(photos: Path):
    transform = Transform(Preprocessing([32, 24], [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    [(expected, _, _)] = evaluation_data(photos, transform)
    paths = sorted((photos / "a").iterdir())
    assert torch.equal(transform(paths), expected)
    assert torch.equal(transform(str(paths[0])), expected[0])


def test_the_transform_takes_pillow_images_arrays_and_tensors_alike(photos: Path):
    transform = Transform(Preprocessing([32, 32], [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    for path in sorted((photos / "a").glob("*.png")):
        with Image.open(path) as image:
            array = numpy.array(image.convert("RGB"))
            expected = transform(path)
            assert torch.equal(transform(image), expected)
        assert torch.equal(transform(array), expected)
        assert torch.equal(transform(torch.from_numpy(array).permute(2, 0, 1)), expected)
        assert torch.equal(transform([array, array]), torch.stack([expected, expected]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), "a tensor of float32 .* give uint8 pixels"),
        (numpy.zeros((8, 8), numpy.uint8), "an array of uint8 and shape"),
        (None, "a NoneType is no image"),
        ([], "no images were given"),
    ],
)
def test_the_transform_refuses_what_is_no_image(image: object, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        Transform(Preprocessing([8, 8], [0.5] * 3, [0.5] * 3))(image)


def test_a_file_that_is_no_image_is_named(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"broken\.png: not an image"):
        Transform(Preprocessing([8, 8], [0.5] * 3, [0.5] * 3))(tmp_path / "broken.png")


def test_embeddings_are_the_features_of_evaluations(run: ssl_zoo.Run, photos: Path):
    encoder = run.encoder()
    data = evaluation_data(photos, encoder.transform)
    paths = sorted((photos / "a").iterdir())
    for options in ({}, {"pooling": "class_token"}, {"num_layers": 2}, {"final_norm": False}):
        pooling = Pooling(options.get("pooling", "average"))
        expected = extract(encoder.network, data, **{**options, "pooling": pooling}).values
        torch.testing.assert_close(encoder.embed(paths, **options), expected)
    tokens = extract(encoder.network, data, pooling=Pooling.tokens).values
    torch.testing.assert_close(encoder.patches(paths, batch_size=3), tokens)
    assert tokens.shape == (4, 64, encoder.embed_dim) and encoder.grid == (8, 8)


def test_a_run_its_checkpoint_and_its_export_are_one_encoder(run: ssl_zoo.Run, folder: Path):
    images = torch.randn(2, 3, 32, 32)
    expected = ssl_zoo.load(run.path).embed(images)
    sources = [run.path / "checkpoints" / "step_00000004", folder, folder / "target_encoder.safetensors"]
    for source in sources:
        encoder = ssl_zoo.load(source)
        assert torch.equal(encoder.embed(images), expected)
        assert (encoder.origin.method, encoder.origin.network, encoder.origin.step) == ("ijepa", "target_encoder", 4)
        assert encoder.transform.preprocessing == run.encoder().transform.preprocessing


def test_options_of_load_choose_checkpoint_and_network(run: ssl_zoo.Run, folder: Path):
    images = torch.randn(2, 3, 32, 32)
    last, earlier = ssl_zoo.load(run.path).embed(images), ssl_zoo.load(run.path, checkpoint=2).embed(images)
    student = ssl_zoo.load(run.path, network="encoder").embed(images)
    assert not torch.equal(last, earlier) and not torch.equal(last, student)
    assert torch.equal(ssl_zoo.load(folder, network="encoder").embed(images), student)


def test_another_image_size_renders_larger_images_with_recomputed_positions(run: ssl_zoo.Run):
    encoder = ssl_zoo.load(run.path, image_size=(48, 32))
    pixels = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    assert encoder.transform(pixels).shape == (3, 48, 32)
    assert encoder.patches(pixels).shape == (1, 12 * 8, 48)
    with pytest.raises(ValueError, match=r"image_size=50 is no multiple of patch_size=4"):
        ssl_zoo.load(run.path, image_size=50)


def test_embed_refuses_float_images_of_another_shape(run: ssl_zoo.Run):
    with pytest.raises(ValueError, match=r"float images of shape \[3, 32, 32\]; give normalised ones of \(batch, 3"):
        run.encoder().embed(torch.randn(3, 32, 32))


def test_nothing_to_load_is_one_sentence_with_the_remedy(run: ssl_zoo.Run, folder: Path, tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(b"")
    shutil.copy(folder / "encoder.safetensors", tmp_path / "alone.safetensors")
    cases = {
        tmp_path / "missing": "there is no",
        tmp_path: "neither a run .* nor a folder of weights",
        tmp_path / "x.pth": r"import it first:\n  python tools/import_weights\.py",
        tmp_path / "alone.safetensors": r"has no manifest\.json beside it",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message):
            ssl_zoo.load(path)
    with pytest.raises(ValueError, match="network='predictor' must be one of evaluated, encoder, target_encoder"):
        ssl_zoo.load(folder / "predictor.safetensors")
    with pytest.raises(ValueError, match=r"--checkpoint 3: .* the steps 2, 4"):
        ssl_zoo.load(run.path, checkpoint=3)


def test_an_altered_export_is_refused(folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = bytearray((copy / "target_encoder.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "target_encoder.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not the file that manifest\.json describes"):
        ssl_zoo.load(copy)


def test_an_export_for_another_library_names_the_call_that_loads_it(run: ssl_zoo.Run, tmp_path: Path):
    from ssl_zoo.interop.export import Format

    export_run(run.path, tmp_path / "timm", format=Format.timm)
    with pytest.raises(ValueError, match=r'timm\.create_model\("local-dir:'):
        ssl_zoo.load(tmp_path / "timm")


def test_training_returns_a_run_with_its_records(run: ssl_zoo.Run):
    assert (run.step, run.num_steps, run.is_finished) == (4, 4, True)
    assert [line["step"] for line in run.metrics if "knn5" in line][-1] == 4
    assert run.scores["knn5"].value == run.metrics[-1]["knn5"]


@pytest.mark.slow
def test_a_run_trains_outside_of_the_main_thread(tmp_path: Path):
    settings = {**TINY, "trainer.num_steps": 1, "probe.evaluators": [], "output_dir": tmp_path}
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ssl_zoo.train, DEMO, settings, verbose=False).result().is_finished


def test_scores_of_a_run_its_export_and_its_encoder_are_equal(run: ssl_zoo.Run, folder: Path, tmp_path: Path):
    settings = {"overrides": {"probe.knn.k": [5]}, "verbose": False}
    scores = ssl_zoo.evaluate(run, ["knn", "health"], out=tmp_path, **settings)
    assert scores["knn5"].value == run.scores["knn5"].value
    written = json.loads(next(tmp_path.glob("knn*.json")).read_text())["scores"][0]
    assert (written["value"], written["protocol_hash"]) == (scores["knn5"].value, scores["knn5"].protocol_hash)
    for source in (folder, run.encoder()):
        again = ssl_zoo.evaluate(source, "knn", **settings)["knn5"]
        assert (again.value, again.baseline) == (scores["knn5"].value, scores["knn5"].baseline)
        assert again.protocol_hash == scores["knn5"].protocol_hash


@pytest.mark.slow
def test_weights_without_a_run_are_scored_on_data_that_is_named(run: ssl_zoo.Run, folder: Path, tmp_path: Path):
    imported = shutil.copytree(folder, tmp_path / "imported")
    manifest = json.loads((imported / "manifest.json").read_text())
    (imported / "manifest.json").write_text(json.dumps({**manifest, "kind": "import", "config": None}))
    with pytest.raises(ValueError, match=r"names no data; pass data='imagefolder'"):
        ssl_zoo.evaluate(imported, "knn", verbose=False)
    data = {key: value for key, value in TINY.items() if key.startswith(("data.", "probe.knn"))}
    [score] = ssl_zoo.evaluate(imported, "knn", data="scenes", overrides=data, verbose=False).values()
    assert (score.value, score.protocol_hash) == (run.scores["knn5"].value, run.scores["knn5"].protocol_hash)


def test_errors_are_exceptions_with_the_message_of_the_tools(run: ssl_zoo.Run):
    with pytest.raises(ValueError, match=r"optim\.learning_rate.*optim\.lr"):
        ssl_zoo.train(DEMO, {"optim.learning_rate": 0.1})
    with pytest.raises(LookupError, match="no evaluator is named 'kn'"):
        ssl_zoo.evaluate(run, "kn", verbose=False)
    with pytest.raises(ValueError, match=r"overrides='a=1' is a string; give a list"):
        ssl_zoo.train(DEMO, "a=1")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, ssl_zoo; dir(ssl_zoo); print([m for m in ('torch', 'timm', 'omegaconf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_relative_position_biases_are_interpolated_for_another_image_size(tmp_path: Path):
    settings = {**TINY, "backbone.relative_position_bias": True, "trainer.num_steps": 1, "output_dir": tmp_path}
    run = ssl_zoo.train(DEMO, settings, verbose=False)
    encoder = ssl_zoo.load(run.path, image_size=48)
    assert encoder.patches(torch.randn(2, 3, 48, 48)).shape == (2, 144, 48)


def test_the_transform_of_a_run_and_its_export_has_the_intensity_range_and_background_of_the_data(tmp_path: Path):
    (tmp_path / "data").mkdir()
    for number in range(4):
        ramp = numpy.linspace(0, 1000 + 100 * number, 32 * 32).reshape(32, 32).astype(numpy.uint16)
        Image.fromarray(ramp).save(tmp_path / "data" / f"{number}.png")
    clear = Image.fromarray(numpy.zeros((32, 32, 4), numpy.uint8), mode="RGBA")
    clear.save(tmp_path / "data" / "clear.png")
    settings = {name: value for name, value in TINY.items() if not name.startswith(("data.", "probe."))}
    own = {"data": "imagefolder", "data.path": tmp_path / "data", "data.intensity_range": [0, 2000]}
    own |= {"data.background": [10, 20, 30], "output_dir": tmp_path / "run", "trainer.batch_size": 4}
    run = ssl_zoo.train(DEMO, {**settings, **own, "trainer.num_steps": 1}, verbose=False)
    for encoder in (run.encoder(), ssl_zoo.load(export_run(run.path).folder)):
        assert encoder.transform.pixels(tmp_path / "data" / "0.png").max() == round(1000 / 2000 * 255)
        assert encoder.transform.pixels(tmp_path / "data" / "clear.png")[:, 0, 0].tolist() == [10, 20, 30]
