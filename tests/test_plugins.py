"""Plug-ins register parts from outside the tree; each runs in its own process, since registration can't be undone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssl_zoo
from ssl_zoo.config.schema import sections
from ssl_zoo.registry import REGISTRIES

ROOT = Path(ssl_zoo.__file__).resolve().parent.parent

PLUGIN = '''
from dataclasses import dataclass

from ssl_zoo.method import METHODS, Method, MethodConfig, Output
from ssl_zoo.settings import setting


@dataclass
class NothingConfig(MethodConfig):
    amount: int = setting(3, "how much of nothing")


@METHODS.register("nothing", NothingConfig)
class Nothing(Method):
    """Learns nothing at all."""

    default_masks = "multiblock"

    def forward(self, batch, step):
        return Output({"sum": batch.views["image"].sum()})
'''
RECIPE = "defaults: [method: nothing, backbone: vit_tiny, data: scenes]\nmethod: {amount: 5}\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nothing.py").write_text(PLUGIN)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def run(folder, *command, path=()):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, *path]))}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def install(site, name, target):
    """Write the metadata that pip installs for a distribution with one entry point."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ssl_zoo.plugins]\n{name} = {target}\n")


LOAD = """
from ssl_zoo.config import load_config
from ssl_zoo.plugins import discover
discover({plugins})
config = load_config("recipe.yaml")
print(type(config.method).__name__, config.method.amount, type(config.masks).__name__, config.targets)
"""


@pytest.mark.parametrize("plugin", ["nothing.py", "nothing"])
def test_a_recipe_chooses_a_method_of_a_plugin_file_or_module(folder, plugin):
    done = run(folder, "-c", LOAD.format(plugins=[plugin]), path=[folder])
    assert done.stdout.split() == ["NothingConfig", "5", "MultiblockConfig", "None"], done.stderr


def test_an_installed_entry_point_registers_its_method_without_being_named(folder):
    site = folder / "site"
    install(site, "nothing_plugin", "nothing")
    done = run(folder, "-c", LOAD.format(plugins=[]), path=[site, folder])
    assert done.stdout.split()[:2] == ["NothingConfig", "5"], done.stderr


def test_a_broken_entry_point_names_itself_and_stops_nothing_else(folder):
    site = folder / "site"
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    install(site, "broken_plugin", "broken")
    install(site, "nothing_plugin", "nothing")
    listed = run(folder, str(ROOT / "tools" / "list.py"), "method", path=[site, folder])
    assert listed.returncode == 0
    assert re.search(r"^nothing +Learns nothing at all\.$", listed.stdout, re.MULTILINE)
    assert "broken_plugin" in listed.stderr and "a_module_that_is_not_there" in listed.stderr
    (folder / "recipe.yaml").write_text(RECIPE.replace("nothing", "lost"))
    failed = run(folder, "-c", LOAD.format(plugins=[]), path=[site, folder])
    assert "method=lost" in failed.stderr and "broken_plugin" in failed.stderr


@pytest.mark.parametrize(
    "plugin, reason", [("absent.py", "no file"), ("broken.py", "NameError"), ("absent", "No module")]
)
def test_a_plugin_that_was_asked_for_and_fails_is_an_error(folder, plugin, reason):
    (folder / "broken.py").write_text("nowhere_defined\n")
    done = run(folder, str(ROOT / "tools" / "list.py"), "--plugin", plugin)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: --plugin {plugin}: ") and reason in done.stderr


def test_list_runs_in_a_bare_checkout_and_names_kinds_and_parts(folder):
    kinds = subprocess.run([sys.executable, ROOT / "tools" / "list.py"], cwd="/", capture_output=True, text=True)
    assert "method " in kinds.stdout and "ijepa" in kinds.stdout, kinds.stderr
    backbones = run(folder, str(ROOT / "tools" / "list.py"), "backbone")
    assert "vit_large  ViT-L/16" in backbones.stdout
    unknown = run(folder, str(ROOT / "tools" / "list.py"), "mehtods")
    assert unknown.returncode == 1 and "Did you mean 'methods'?" in unknown.stderr


PART = '''
from dataclasses import dataclass

from {module} import {base}
from ssl_zoo.registry import REGISTRIES
from ssl_zoo.settings import setting


@dataclass
class Added_{group}Config({base}):
    amount: int = setting(3, "how much is added", at_least=1)


@REGISTRIES["{group}"].register("added", Added_{group}Config)
class Added:
    """Is added to {group}."""
'''
# Every section that is chosen from registered parts, except the method, whose plug-in is above.
BASES = {group: base for group, base in sections().items() if group in REGISTRIES and group != "method"}
CHOOSE = """
from ssl_zoo.config import ConfigError, load_config
from ssl_zoo.plugins import discover
discover(["parts.py"])
config = load_config("chosen.yaml")
print({group: [type(getattr(config, group)).__name__, getattr(config, group).amount] for group in %s})
print(config.probe.evaluators)
try:
    load_config("chosen.yaml", ["masks.amount=0"])
except ConfigError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A plug-in file with one part of every group, and a recipe that chooses them all with a setting of their own."""
    folder = tmp_path_factory.mktemp("parts")
    texts = [PART.format(group=group, module=base.__module__, base=base.__name__) for group, base in BASES.items()]
    texts.append(PART.format(group="evaluators", module="ssl_zoo.eval", base="EvaluatorConfig"))
    texts.append(PART.format(group="loggers", module="ssl_zoo.engine.loggers", base="LoggerConfig"))
    (folder / "parts.py").write_text("".join(texts))
    choices = "".join(f", {group}: added" for group in BASES)
    values = "".join(f"{group}: {{amount: 5}}\n" for group in BASES)
    (folder / "chosen.yaml").write_text(f"defaults: [method: ijepa{choices}]\n{values}probe: {{evaluators: [added]}}\n")
    return folder


def test_the_groups_of_parts_are_known():
    assert {"masks", "targets", "data", "backbone", "optim"} <= set(BASES)


def test_a_plugin_file_adds_a_part_of_every_kind_to_the_list(parts):
    done = run(parts, str(ROOT / "tools" / "list.py"), "--plugin", "parts.py")
    listed = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert [group for group in (*BASES, "evaluators", "loggers") if not re.search(r"\badded\b", listed[group])] == [], (
        done.stderr
    )
    masks = run(parts, str(ROOT / "tools" / "list.py"), "masks", "--plugin", "parts.py")
    assert re.search(r"^added +Is added to masks\.$", masks.stdout, re.MULTILINE)


def test_a_recipe_chooses_parts_of_a_plugin_file_and_sets_their_own_keys_within_bounds(parts):
    done = run(parts, "-c", CHOOSE % list(BASES))
    chosen = {group: [f"Added_{group}Config", 5] for group in BASES}
    refused = "masks.amount=0 must be at least 1"
    assert done.stdout.splitlines() == [str(chosen), "['added']", refused], done.stderr


DISCOVER = """
import importlib
from ssl_zoo.plugins import discover
from ssl_zoo.registry import BROKEN_PLUGINS, REGISTRIES
importlib.import_module("ssl_zoo.{package}").__path__.append("extra")
discover()
print("added" in REGISTRIES["masks"].names(), *BROKEN_PLUGINS)
"""


@pytest.mark.parametrize(
    "package, broken, printed",
    [("masks", False, "True"), ("masks", True, None), ("methods", True, "False ssl_zoo.methods.extra")],
)
def test_a_file_of_a_package_needs_no_import_list_and_only_a_broken_method_file_is_skipped(
    tmp_path, package, broken, printed
):
    part = PART.format(group="masks", module="ssl_zoo.masks", base="MasksConfig")
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "extra.py").write_text("nowhere_defined\n" if broken else part)
    done = run(tmp_path, "-c", DISCOVER.format(package=package))
    if printed is None:
        assert "nowhere_defined" in done.stderr and done.returncode == 1
    else:
        assert done.stdout.strip() == printed, done.stderr


def test_methods_refuse_a_second_import_under_another_name(folder):
    done = run(folder, "-c", "import methods.ijepa")
    assert "import this package as ssl_zoo.methods, not as methods" in done.stderr


WORKING = """
from dataclasses import dataclass

import torch

from ssl_zoo.data.batch import ViewConfig, ViewSpec
from ssl_zoo.eval import EVALUATORS, Evaluator, EvaluatorConfig
from ssl_zoo.masks import MASKS, MaskGenerator, Masks, MasksConfig
from ssl_zoo.regularizers import REGULARIZERS, Regularizer, RegularizerConfig
from ssl_zoo.scores import Score
from ssl_zoo.settings import setting
from ssl_zoo.views import VIEWS, ViewSet, ViewSetConfig


@dataclass
class HalvesConfig(MasksConfig):
    visible: int = setting(8, "visible patches", at_least=1)


@MASKS.register("halves", HalvesConfig)
class Halves(MaskGenerator):
    def __call__(self, batch_size, generator):
        order = torch.rand(batch_size, self.num_patches, generator=generator).argsort(1)
        return Masks(order[:, None, : self.config.visible], order[:, None, self.config.visible :])


@dataclass
class DarkConfig(ViewSetConfig):
    crop: ViewConfig = setting(ViewConfig(crop_scale=[0.5, 1.0]), "the crop")


@VIEWS.register("dark", DarkConfig)
class Dark(ViewSet):
    def specs(self, image_size):
        return [ViewSpec("image", image_size, self.config.crop)]


@dataclass
class SpreadConfig(RegularizerConfig):
    least_std: float = setting(1.0, "standard deviation that features should have", above=0)


@REGULARIZERS.register("spread", SpreadConfig)
class Spread(Regularizer):
    def terms(self, samples, values, world):
        return {"spread": (self.config.least_std - world.gather(samples).std(dim=0)).relu().mean()}


@dataclass
class WidthConfig(EvaluatorConfig):
    times: int = setting(1, "factor of the score", at_least=1)


@EVALUATORS.register("width", WidthConfig)
class Width(Evaluator):
    needs_labels = False

    def __call__(self, model):
        _, test = model.features(self.config)
        value = float(self.config.times * test.values.shape[1])
        return [Score("width", value, self.protocol(model), is_fraction=False)]
"""


def test_masks_views_regularizer_and_evaluator_of_a_plugin_file_train_and_score(tmp_path):
    (tmp_path / "working.py").write_text(WORKING)
    small = ["trainer.num_steps=2", "trainer.batch_size=8", "trainer.device=cpu", "monitor.images_every=0"]
    small += ["data.num_train=16", "data.num_test=8", "monitor.log_every=1", "output_dir=run"]
    chosen = ["masks=halves", "masks.visible=10", "views=dark", "views.crop.horizontal_flip=0.5"]
    chosen += ["regularizer=spread", "regularizer.weight=0.5", "probe.evaluators=[width]", "probe.width.times=2"]
    train = (str(ROOT / "tools" / "train_net.py"), "--plugin", "working.py")
    recipe = ("--config", str(ROOT / "configs" / "ijepa" / "demo.yaml"))
    done = run(tmp_path, *train, *recipe, *small, *chosen)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [record["width"] for record in records if "width" in record]
    assert scores == [256.0, 256.0]  # twice the width of the encoder, before and after
    steps = [record for record in records if "loss" in record]
    assert [record["visible_patches"] for record in steps] == [10, 10]
    for record in steps:
        assert record["spread_loss"] > 0
        assert record["loss"] == pytest.approx(record["prediction_loss"] + record["spread_loss"], rel=1e-5)
    accumulating = ["trainer.gradient_accumulation_steps=2", "output_dir=other"]
    refused = run(tmp_path, *train, *recipe, *small, *chosen, *accumulating)
    assert refused.returncode == 1 and "the loss of Spread couples all images of a step" in refused.stderr
