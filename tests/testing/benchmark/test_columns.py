"""Which baselines stand beside which recipes, and how fast recipes are relative to them."""

from dataclasses import replace

import pytest
from rich.console import Console

from ssl_zoo.engine.settings import Precision
from ssl_zoo.testing.benchmark.case import Case, Facts
from ssl_zoo.testing.benchmark.columns import with_baselines
from ssl_zoo.testing.benchmark.comparison import Result, Timing, baselines_of, figures_of
from ssl_zoo.testing.benchmark.table import baseline_table, table
from ssl_zoo.tools.benchmark import cases, main, parse

IJEPA, MAE, DINO = (f"configs/{method}/demo.yaml" for method in ("ijepa", "mae", "dino"))


def columns(*words: str) -> list[Case]:
    return cases(parse(["--config", *words, "optim=adamw"]))


def names(*words: str) -> list[str]:
    return [case.name for case in columns(*words)]


def result(case: Case, seconds: float, **facts: object) -> Result:
    known = replace(Facts(8, "fp32", {}, {"step": 2e9}, None, None), **facts)
    return Result(case, known, Timing(seconds, seconds, seconds), {}, 400e9, 2**30)


def test_baselines_stand_before_their_recipe() -> None:
    assert names(IJEPA, "--baseline", "plain", "--baseline", "timm") == ["plain", "timm", "ijepa/demo"]


def test_each_recipe_has_the_baselines_of_its_method() -> None:
    words = (IJEPA, DINO, "--baseline", "timm", "--baseline", "transformers")
    expected = ["timm, ijepa/demo", "transformers, ijepa/demo", "ijepa/demo", "timm, dino/demo", "dino/demo"]
    assert names(*words) == expected


def test_recipes_with_equal_work_share_a_baseline() -> None:
    assert names(IJEPA, "--baseline", "timm", "--sweep", "trainer.compile=false,true")[0] == "timm"
    by_precision = columns(IJEPA, "--baseline", "plain-fp32", "--sweep", "trainer.precision=fp32,bf16")
    assert [case.baseline for case in by_precision] == ["plain-fp32", None, None]
    assert by_precision[0].config.trainer.precision is Precision.fp32


def test_a_baseline_without_a_method_of_any_recipe_is_one_error(capsys: pytest.CaptureFixture) -> None:
    assert main(["--config", DINO, "optim=adamw", "--baseline", "transformers"]) == 1
    assert (
        "--baseline transformers trains none of the recipes' methods; there are plain: ijepa" in capsys.readouterr().err
    )


def test_a_library_that_is_not_installed_is_left_out_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_zoo.testing.benchmark.baselines.catalogue.find_spec", lambda name: None)
    reported: list[str] = []
    [recipe] = columns(IJEPA)
    assert with_baselines([recipe], ["lightly", "timm"], reported.append)[0].name == "timm"
    assert reported == [
        "skipped: --baseline lightly needs lightly, which is not installed: pip install 'ssl-zoo[lightly]'"
    ]


def test_speed_is_compared_at_equal_work_and_precision() -> None:
    [plain, timm, recipe] = columns(IJEPA, "--baseline", "plain-fp32", "--baseline", "timm")
    bf16 = {"precision": "bf16"}
    results = [result(plain, 0.4), result(timm, 0.2, **bf16), result(recipe, 0.1, **bf16)]
    speed_ups = figures_of(results)[-1]["speed_up"]
    assert speed_ups["plain-fp32"] == {"images_per_second": pytest.approx(4), "cpu_time": None}
    assert speed_ups["timm"]["images_per_second"] == pytest.approx(2)
    assert baselines_of(results[0], results) == {}
    in_fp32 = [results[0], results[1], result(recipe, 0.1)]
    assert list(baselines_of(in_fp32[-1], in_fp32)) == ["plain-fp32"]
    larger = replace(recipe, config=replace(recipe.config, trainer=replace(recipe.config.trainer, batch_size=2)))
    assert not baselines_of(result(larger, 0.1, **bf16), results)


def test_tables_have_the_speed_up_and_what_differs() -> None:
    [timm, recipe] = columns(IJEPA, "--baseline", "timm")
    differences = ("no class token", "other masks")
    results = [result(timm, 0.2, differences=differences, encoder_parameters=1234), result(recipe, 0.1)]
    results = [replace(r, cpu_seconds=seconds) for r, seconds in zip(results, (0.15, 0.1), strict=True)]
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table(results), baseline_table(results))
    assert "no class token; other masks" in shown.get() and "1,234" in shown.get()
    assert "40.0 (2.00x, 1.50x)" in shown.get()
    assert baseline_table(results[1:]) is None
