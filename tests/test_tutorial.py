"""The files and commands of docs/tutorial_method.md, run as they are printed."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = (ROOT / "docs" / "tutorial_method.md").read_text()

# A block whose title names a file is the content of that file. Lines of console blocks that begin with $ are commands.
FILES = dict(re.findall(r'^```\w+ title="(\S+)"\n(.*?)^```$', TUTORIAL, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"^```console\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
RUNS = [command for command in COMMANDS if "output_dir=" in command and "--plugin" in command]

NUM_STEPS = 3
# Overrides for fewer steps and images; everything else is as printed.
SHORT = [f"trainer.num_steps={NUM_STEPS}", "trainer.batch_size=8", "monitor.log_every=1"]
SHORT += ["probe.train_samples=64", "probe.test_samples=32", "trainer.device=cpu"]

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def run(command: str, folder: Path, *overrides: str, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess:
    """Run a command of the tutorial in ``folder``, with ``path`` in front of the module search path."""
    program, *arguments = shlex.split(command)
    assert program == "ssl-zoo-train"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "train_net.py", *arguments, *overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_the_tutorial_has_the_files_and_commands_that_are_tested():
    assert set(FILES) == {"my_method.py", "my_recipe.yaml", "pyproject.toml"}
    assert len(COMMANDS) == 5
    assert len(RUNS) == 3


@pytest.mark.parametrize("command", RUNS, ids=lambda command: command.rpartition("output_dir=")[2])
def test_a_run_of_the_tutorial_trains(folder, command):
    done = run(command, folder, *SHORT)
    assert done.returncode == 0, done.stderr
    trained = losses(folder / command.rpartition("output_dir=")[2])
    assert len(trained) == NUM_STEPS
    assert len(set(trained)) == NUM_STEPS  # every step trains on another batch


def test_the_plan_counts_the_predictor_and_writes_nothing(folder):
    before = set(folder.iterdir())
    [command] = [command for command in COMMANDS if "--dry-run" in command]
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    # Two linear layers: token -> hidden -> pixels of a patch.
    predictor = (96 * 256 + 256) + (256 * 3 * 8 * 8 + 3 * 8 * 8)
    assert f"{predictor:,}" in done.stdout
    assert {path for path in folder.iterdir() if path.name != "__pycache__"} == before


def test_an_installed_plugin_is_found_by_its_entry_point(folder, tmp_path_factory):
    [command] = [command for command in COMMANDS if "--plugin" not in command]
    # Run from a folder that has the recipe alone, so that my_method comes from where it was installed.
    elsewhere, packages = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("packages")
    (elsewhere / "my_recipe.yaml").write_text(FILES["my_recipe.yaml"])
    unknown = run(command, elsewhere, *SHORT)
    assert unknown.returncode != 0
    assert "gist" in unknown.stderr
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    subprocess.run([sys.executable, "-m", "pip", "install", *offline, "--target", packages, folder], check=True)
    done = run(command, elsewhere, *SHORT, path=(packages,))
    assert done.returncode == 0, done.stderr
    assert len(losses(elsewhere / "gist_installed")) == NUM_STEPS


@pytest.mark.parametrize(("wrong", "right"), [("method.hiden_dim=64", "hidden_dim"), ("method=gits", "gist")])
def test_an_error_suggests_the_nearest_name(folder, wrong, right):
    done = run(RUNS[0], folder, wrong)
    assert done.returncode != 0
    assert right in done.stderr
    assert "Traceback" not in done.stderr
