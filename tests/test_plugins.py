"""Parts from outside the tree, each in a process of its own since registration can't be undone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssl_zoo

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

    def forward(self, batch, progress):
        return Output(batch.views["image"].sum())

    @classmethod
    def views(cls, config, image_size):
        return ()
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
    """What pip leaves of a distribution with one entry point."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ssl_zoo.plugins]\n{name} = {target}\n")


LOAD = """
from ssl_zoo.config import load_config
from ssl_zoo.registry import discover
discover({plugins})
config = load_config("recipe.yaml")
print(type(config.method).__name__, config.method.amount, type(config.masks).__name__, config.targets)
"""


@pytest.mark.parametrize("plugin", ["nothing.py", "nothing"])
def test_a_plugin_file_or_module_brings_a_method_that_a_recipe_anywhere_names(folder, plugin):
    done = run(folder, "-c", LOAD.format(plugins=[plugin]), path=[folder])
    assert done.stdout.split() == ["NothingConfig", "5", "MultiblockConfig", "None"], done.stderr


def test_an_installed_entry_point_brings_its_method_without_being_named(folder):
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


def test_methods_refuse_a_second_import_under_another_name(folder):
    done = run(folder, "-c", "import methods.ijepa")
    assert "import this package as ssl_zoo.methods, not as methods" in done.stderr
