"""The committed tree installs: a wheel, both editable modes and the bare checkout import the same names.

The packages under test are built from ``git archive HEAD``, so a file that somebody forgot to commit is missed here.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow

# What an interpreter sees of the package: module names per grafted folder, recipes, and the folder it comes from.
PROBE = """
import json, pkgutil
from pathlib import Path
import ssl_zoo, ssl_zoo.configs, ssl_zoo.methods, ssl_zoo.tools
recipes = [Path(folder) for folder in ssl_zoo.configs.__path__]
print(json.dumps({
    "version": ssl_zoo.__version__,
    "package": str(Path(ssl_zoo.__file__).parent),
    "methods": sorted(module.name for module in pkgutil.iter_modules(ssl_zoo.methods.__path__)),
    "tools": sorted(module.name for module in pkgutil.iter_modules(ssl_zoo.tools.__path__)),
    "recipes": sorted({file.relative_to(folder).as_posix() for folder in recipes for file in folder.rglob("*.yaml")}),
}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own that borrows the dependencies of the one the tests run in."""

    root: Path

    @classmethod
    def create(cls, root: Path) -> "Environment":
        run(sys.executable, "-m", "venv", "--without-pip", root)
        packages = next((root / "lib").glob("python3*")) / "site-packages"
        # As a plain entry of the path the borrowed folder lends its packages, but not its editable installs.
        borrowed = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
        (packages / "borrowed.pth").write_text("\n".join(borrowed))
        return cls(root)

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    def install(self, *arguments: str | Path) -> None:
        offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
        run(sys.executable, "-m", "pip", "--python", self.python, "install", *offline, *arguments)

    def probe(self, *, cwd: Path = Path("/")) -> dict:
        return json.loads(run(self.python, "-c", PROBE, cwd=cwd))


def run(*command: str | Path, cwd: Path = Path("/")) -> str:
    """Standard output of a command that must succeed."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=inherited, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def unpack_commit(folder: Path) -> Path:
    """``git archive HEAD`` in ``folder``."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"no commit to build from: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return unpack_commit(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def expected(source) -> dict:
    """What every way of installing must show, read from the files of the commit."""
    return {
        "methods": sorted(file.stem for file in (source / "methods").glob("[!_]*.py")),
        "tools": sorted(file.stem for file in (source / "tools").glob("[!_]*.py")),
        "recipes": sorted(file.relative_to(source / "configs").as_posix() for file in source.glob("configs/**/*.yaml")),
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # From a copy of its own: building leaves a build/ folder and an egg-info behind.
    folder = tmp_path_factory.mktemp("wheel")
    source = unpack_commit(folder / "source")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel) -> Environment:
    environment = Environment.create(tmp_path_factory.mktemp("installed") / "venv")
    environment.install(wheel)
    return environment


def names(seen: dict) -> dict:
    return {key: seen[key] for key in ("methods", "tools", "recipes")}


def test_the_commit_holds_methods_tools_and_recipes(expected):
    assert "ijepa" in expected["methods"]
    assert {"train_net", "list", "verify_golden"} <= set(expected["tools"])
    assert {"train.yaml", "ijepa/vitl16.yaml", "ijepa/demo.yaml"} <= set(expected["recipes"])


def test_a_wheel_owns_one_name_and_holds_every_recipe(installed, expected):
    seen = installed.probe()
    assert Path(seen["package"]).is_relative_to(installed.root)
    assert names(seen) == expected
    packages = Path(seen["package"]).parent
    ours = {path.name for path in packages.iterdir()} - {"borrowed.pth", "__pycache__"}
    assert sorted(name.split("-")[0] for name in ours) == ["ssl_zoo", "ssl_zoo"]  # the package and its dist-info


def test_installed_commands_run_from_the_root_directory(installed):
    by_module = run(installed.python, "-m", "ssl_zoo.tools.list", "methods")
    by_script = run(installed.root / "bin" / "ssl-zoo-list", "methods")
    assert "ijepa" in by_module
    assert by_script == by_module
    for command in ("ssl-zoo-train", "ssl-zoo-eval", "ssl-zoo-compare", "ssl-zoo-make-shards", "ssl-zoo-verify-golden"):
        assert "usage" in run(installed.root / "bin" / command, "--help").lower()


def test_an_installed_recipe_composes_by_its_place_in_the_package(installed):
    recipe = Path(installed.probe()["package"]) / "configs" / "ijepa" / "demo.yaml"
    plan = run(installed.root / "bin" / "ssl-zoo-train", "--config", recipe, "--dry-run")
    assert "predictor" in plan


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_an_editable_install_imports_the_same_names(tmp_path, expected, mode):
    source = unpack_commit(tmp_path / "source")
    environment = Environment.create(tmp_path / "venv")
    environment.install("--config-settings", f"editable_mode={mode}", "--editable", source)
    seen = environment.probe()
    assert names(seen) == expected
    assert Path(seen["package"]).is_relative_to(tmp_path)


def test_a_bare_checkout_imports_the_same_names(tmp_path, source, expected):
    seen = Environment.create(tmp_path / "venv").probe(cwd=source)
    assert names(seen) == expected
    assert Path(seen["package"]) == source / "ssl_zoo"


def test_the_version_is_known_without_importing_torch(source, installed):
    code = (
        "import importlib.metadata, sys, ssl_zoo; print(importlib.metadata.version('ssl-zoo') == ssl_zoo.__version__)"
    )
    assert run(installed.python, "-c", code).strip() == "True"
    assert run(installed.python, "-c", "import sys, ssl_zoo; print('torch' in sys.modules)").strip() == "False"
