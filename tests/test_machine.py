"""Differences between machines: CPUs, systems, missing modules."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ssl_zoo
from ssl_zoo import io, machine
from ssl_zoo.tools import train_net

ROOT = Path(train_net.__file__).resolve().parents[1]
LIBRARY = Path(ssl_zoo.__file__).parent
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__")

# As on a Mac: no affinity, no waitid, workers that are not forked; without the modules of Unix too. Libraries of others
# have their own ways around missing modules and are imported before.
AS_ON_A_MAC = """
import importlib, multiprocessing, os, sys
import iopath.common.file_io, torch
for name in ("sched_getaffinity", "sched_setaffinity", "waitid"):
    delattr(os, name)
for name in ("resource", "fcntl"):
    sys.modules[name] = None
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
"""


def run_script(tmp_path: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    path = tmp_path / "script.py"
    path.write_text(AS_ON_A_MAC + script)
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def test_every_tool_prints_its_help_without_modules_that_only_some_systems_have(tmp_path: Path) -> None:
    script = f"""
    for name in {TOOLS}:
        try:
            importlib.import_module(f"ssl_zoo.tools.{{name}}").main(["--help"])
        except SystemExit as end:
            assert end.code == 0, name
"""
    finished = run_script(tmp_path, script)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("usage: ") == len(TOOLS)


@pytest.mark.slow
def test_a_training_with_spawned_workers_and_a_plugin_that_is_a_file_runs_without_these_modules(tmp_path: Path) -> None:
    plugin = tmp_path / "shades.py"
    plugin.write_text("""
from dataclasses import dataclass
import torch
from ssl_zoo.data.sources import SOURCES, Source, SourceConfig

@dataclass
class ShadesConfig(SourceConfig):
    \"\"\"Images of one colour each.\"\"\"

@SOURCES.register("shades", ShadesConfig)
class Shades(Source):
    \"\"\"Images of one colour each.\"\"\"
    image_size = (32, 32)
    def __len__(self):
        return 32
    def image(self, index):
        return torch.full((3, 32, 32), index, dtype=torch.uint8)
    def sample_name(self, index):
        return str(index)
""")
    script = """
    from ssl_zoo.tools import train_net
    sys.exit(train_net.main(sys.argv[1:]))
"""
    tiny = ["backbone.embed_dim=48", "backbone.depth=1", "backbone.num_heads=4", "backbone.image_size=32"]
    tiny += ["backbone.patch_size=4", "method.predictor_dim=32", "method.predictor_depth=1", "method.predictor_heads=4"]
    tiny += ["masks.min_patches=4", "trainer.batch_size=16", "trainer.num_steps=2", "trainer.precision=fp32"]
    tiny += ["monitor.loggers=[jsonl]", "monitor.images_every=0", "probe.evaluators=[]", "monitor.log_every=1"]
    recipe = ["--config", str(ROOT / "configs" / "ijepa" / "demo.yaml"), "--plugin", str(plugin), "data=shades"]
    finished = run_script(tmp_path, script, *recipe, *tiny, "loader.num_workers=1", f"output_dir={tmp_path / 'run'}")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"loss"') == 2


@pytest.mark.parametrize("tool", TOOLS)
def test_windows_is_refused_with_one_sentence_that_names_wsl(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main = __import__(f"ssl_zoo.tools.{tool}", fromlist=["main"]).main
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match=r"^error: ssl_zoo runs on Linux and macOS; on Windows, install WSL") as end:
        main(["--help"])
    assert isinstance(end.value.code, str)  # printed to stderr, with status 1


def test_modules_of_some_systems_are_imported_only_where_they_are_used() -> None:
    found = []
    for path in [*LIBRARY.rglob("*.py"), *(ROOT / "tools").glob("*.py"), *(ROOT / "methods").glob("*.py")]:
        if "testing" in path.parts:  # test equipment, which reads /proc too
            continue
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path}: {name}" for name in names if name in ("fcntl", "resource", "pwd", "grp", "termios")]
    assert not found


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # in a container
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/user.slice/a.scope\n", {"user.slice/a.scope/cpu.max": "200000 100000\n"}, 2.0),  # of systemd
        (
            "0::/a.slice/b.scope\n",
            {"a.slice/cpu.max": "50000 100000\n", "a.slice/b.scope/cpu.max": "max 100000\n"},
            0.5,
        ),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "400000 100000\n", "b/cpu.max": "1 100\n"}, 3.0),
        ("0::/docker/of/host\n", {"cpu.max": "250000 100000\n"}, 2.5),  # a path that the container does not have
        ("0::/../../b\n", {"b/cpu.max": "250000 100000\n"}, 2.5),  # outside of the namespace of the process
        ("", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (
            "9:memory:/x\n4:cpu,cpuacct:/a:b/c\n0::/other\n",
            {"cpu/a:b/cpu.cfs_quota_us": "100000\n", "cpu/a:b/cpu.cfs_period_us": "50000\n"},
            2.0,
        ),
        ("0::/a\n", {}, None),
    ],
)
def test_cpus_are_counted_by_affinity_and_quota(
    own: str, files: dict[str, str], quota: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(content)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert machine._cgroup_quota(tmp_path / "cgroup", tmp_path / "own") == quota
    assert machine.available_cpus() == (8 if quota is None else -(-quota // 1))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert machine.available_cpus() == (2 if quota is None else min(2, -(-quota // 1)))


def test_a_system_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert machine._cgroup_quota(tmp_path / "none", tmp_path / "nowhere") is None


@pytest.mark.parametrize(("variable", "expected"), [(None, 1), ("3", 3)])
def test_torch_gets_no_more_threads_than_cpus_unless_the_user_sets_them(
    variable: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(machine, "available_cpus", lambda: 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        machine.limit_threads()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_only_mps_has_no_float64() -> None:
    assert machine.float64_device("mps") == torch.device("cpu")
    assert [machine.float64_device(name) for name in ("cpu", "cuda:1", None)] == ["cpu", "cuda:1", None]


def test_a_lock_is_held_by_one_and_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import errno
    import fcntl

    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        assert io.try_lock(first) and not io.try_lock(second)
        monkeypatch.setattr(fcntl, "flock", refuse)
        assert io.try_lock(second) and "can't be locked (No locks available)" in caplog.text
