"""The benchmark: real trainings in their own processes, and the conclusions from their times."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_commands import ROOT

from ssl_zoo.testing.benchmark.case import Case, Facts
from ssl_zoo.testing.benchmark.clock import CPU_TIME, Clock
from ssl_zoo.testing.benchmark.comparison import Result, Timing, in_step_order
from ssl_zoo.testing.benchmark.peak import matrix_peak
from ssl_zoo.tools.benchmark import cases, main, parse

TINY = ["backbone.embed_dim=24", "backbone.num_heads=2", "backbone.depth=2", "trainer.batch_size=4"]
TINY_IJEPA = [*TINY, "method.predictor_dim=16", "method.predictor_depth=1"]
DEMO = "configs/ijepa/demo.yaml"


def result(**changes: object) -> Result:
    facts = Facts(8, "fp32", {}, {"step": 2e9}, 1e-3, 0.01)
    base = Result(Case("a", None), facts, Timing(0.1, 0.1, 0.1), {"data wait": 0.001}, 400e9, 2**30)
    return replace(base, **changes)


def test_utilisation_is_achieved_over_peak_flops() -> None:
    assert result().images_per_second == pytest.approx(80)
    assert result().utilisation == pytest.approx(80 * 2e9 / 400e9)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, "compute: 40%"),
        ({"phases": {"data wait": 0.03}}, "loader: a step waits 30%"),
        ({"facts": Facts(8, "fp32", {}, {"step": 2e9}, 1e-3, 0.05)}, "fixed cost: a step of one image takes 50%"),
    ],
)
def test_limit_is_the_bottleneck(changes: dict, limit: str) -> None:
    assert result(**changes).limit.startswith(limit)


def test_modules_come_before_the_rest_of_the_forward_pass() -> None:
    phases = {"encoder": 2.0, "forward": 5.0, "target": 1.0, "backward": 4.0, "data wait": 0.5}
    expected = {"data wait": 0.5, "encoder": 2.0, "target": 1.0, "loss and rest of forward": 2.0, "backward": 4.0}
    assert in_step_order(phases) == expected
    assert list(in_step_order(phases)) == list(expected)


def test_clock_sums_repeated_phases_of_a_step() -> None:
    clock = Clock(torch.device("cpu"))
    for repetitions in (2, 1):
        clock.new_step()
        for _ in range(repetitions):
            with clock("forward"):
                pass
    first, second = clock.collect()
    assert first.keys() == second.keys() == {"forward"}
    assert all(seconds >= 0 for step in (first, second) for seconds in step.values())
    assert clock.collect() == []


def test_a_step_on_a_cpu_has_its_cpu_time_without_waits() -> None:
    clock = Clock(torch.device("cpu"))
    with clock.step():
        time.sleep(0.05)
    [step] = clock.collect()
    assert step["step"] >= 0.05 > step[CPU_TIME] >= 0


def test_a_single_step_has_no_spread() -> None:
    assert Timing.of([2.0]) == Timing(2.0, 2.0, 2.0)


def test_matrix_peak_is_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_zoo.testing.benchmark.peak._SIDES", {"cpu": (64,)})
    assert matrix_peak(torch.device("cpu"), torch.float32) > 0


def test_columns_are_recipes_times_sweep_times_processes() -> None:
    words = ["--config", DEMO, "configs/mae/demo.yaml", "seed=3", "--sweep", "masks.x=[1,2],[3,4]", "--scaling", "1,2"]
    arguments = parse(words)
    assert arguments.config == [DEMO, "configs/mae/demo.yaml"]
    assert arguments.overrides == ["seed=3"]
    arguments.sweep = "trainer.batch_size=4,8"
    built = cases(arguments)
    assert [(c.config.trainer.batch_size, c.world_size) for c in built] == [(4, 1), (4, 2), (8, 1), (8, 2)] * 2


@pytest.mark.slow
def test_command_times_recipe_baseline_and_two_processes(tmp_path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "figures.json"
    words = [
        "--config",
        DEMO,
        *TINY_IJEPA,
        "optim=adamw",
        "--baseline",
        "plain",
        "--scaling",
        "1,2",
        "--json",
        str(out),
    ]
    assert main([*words, "--rounds", "2", "--steps", "2", "--warmup", "1"]) == 0
    plain, alone, pair = json.loads(out.read_text())
    assert [r["world_size"] for r in (plain, alone, pair)] == [1, 1, 2]
    assert all(r["images_per_second"] > 0 and r["peak_flops_per_second"] > 0 for r in (plain, alone, pair))
    assert {"target", "encoder", "predictor", "backward", "optimizer", "ema"} <= alone["phase_seconds"].keys()
    assert "images/s" in capsys.readouterr().out


def test_the_error_under_torchrun_has_the_option_for_several_processes(
    monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--config", DEMO]) == 1
    assert (
        "tools/benchmark.py starts its processes itself: run it without torchrun and with --scaling 1,2"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_recipe_that_cannot_run_is_one_error(capsys: pytest.CaptureFixture) -> None:
    words = ["--config", DEMO, *TINY_IJEPA, "data=imagenet1k", "data.root=/nowhere", "--with-data"]
    assert main(words) == 1
    assert "/nowhere" in capsys.readouterr().err


FAILS_LATE = """
from dataclasses import dataclass

from ssl_zoo.method import METHODS
from ssl_zoo.methods.mae import MAE, MAEConfig


@dataclass
class FailsLateConfig(MAEConfig):
    pass


@METHODS.register("fails_late", FailsLateConfig)
class FailsLate(MAE):
    calls = 0

    def forward(self, batch, progress):
        FailsLate.calls += 1
        if FailsLate.calls == 8:  # the first six are one-image steps before the first turn
            raise RuntimeError("out of something")
        return super().forward(batch, progress)
"""


@pytest.mark.slow
def test_a_recipe_that_fails_in_its_turn_is_one_error(tmp_path: Path) -> None:
    plugin = tmp_path / "fails_late.py"
    plugin.write_text(FAILS_LATE)
    tiny = [*TINY, "method=fails_late", "method.decoder_dim=16", "method.decoder_heads=2", "method.decoder_depth=1"]
    words = ["--config", "configs/mae/demo.yaml", *tiny, "--plugin", str(plugin)]
    words += ["--sweep", "seed=0,1", "--rounds", "1", "--steps", "1", "--warmup", "3"]
    done = subprocess.run([sys.executable, "tools/benchmark.py", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: out of something"
