"""Reading study files, and one clear message per mistake."""

import pytest
from tiny_studies import TEXT, tiny_study, write_study

from ssl_zoo.config import ConfigError
from ssl_zoo.study.file import check_overrides, read_study


def message(path):
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    return str(caught.value)


def test_a_study_has_its_entries_in_order_and_its_recipes_as_files(tmp_path):
    study = tiny_study(tmp_path)
    assert list(study.entries) == ["features", "pixels"]
    assert study.recipe.endswith("ijepa/demo.yaml")
    assert study.entries["pixels"].overrides == ["targets=pixels"]
    assert study.entries["pixels"].published == {"linear": 40.7}
    assert study.published_columns == ["linear"]


def test_a_recipe_beside_the_study_comes_first(tmp_path):
    (tmp_path / "ijepa").mkdir()
    (tmp_path / "ijepa" / "demo.yaml").write_text("defaults: [method: ijepa, backbone: vit_tiny, data: scenes]\n")
    assert tiny_study(tmp_path).recipe == str(tmp_path / "ijepa" / "demo.yaml")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("question:", "questoin:", ["tiny.yaml:3: ", "questoin: there is no such key", "did you mean question?"]),
        ("overrides: [targets", "overides: [targets", ["tiny.yaml:36: ", "entries.pixels.overides", "mean overrides?"]),
        ("seeds: [0]", "seeds: [a]", ["tiny.yaml:7: ", "seeds=[a]", "list of integers", "default is [0,1,2]"]),
        ("seeds: [0]", "seeds: [1, 1]", ["seeds=[1,1]", "without duplicates"]),
        ("columns: [knn5]", "columns: []", ["columns"]),
        ("linear: 40.7", "linear: high", ["entries.pixels.published", "number"]),
        ("title: Features or pixels\n", "", ["title has no value"]),
        ("ijepa/demo", "ijepa/demmo", ["recipe: there is no recipe 'ijepa/demmo'"]),
        ("recipe: ijepa/demo\n", "", ["entries.features: neither the entry nor the study has a recipe"]),
        ("  pixels:", "  the pixels:", ["'the pixels' becomes a directory name"]),
        ("[targets=pixels]", "[seed=3]", ["seed=3", "sets seed from seeds"]),
        ("[targets=pixels]", "[output_dir=x]", ["output_dir=x", "--out"]),
        ("entries:", "entries: [a]\nx:", ["entries must map names to settings"]),
        ("title: Features", "title: [Features", ["no valid YAML"]),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_the_fix(tmp_path, old, new, parts):
    text = TEXT.format(more="")
    assert old in text
    path = tmp_path / "tiny.yaml"
    path.write_text(text.replace(old, new))
    text = message(path)
    assert [part for part in parts if part not in text] == []


EVALUATIONS = """evaluations:
  scenes:
    evaluators: [knn]
    columns: [knn5]
"""


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("evaluators", "evaluator", ["tiny.yaml:40: ", "evaluations.scenes.evaluator: there is no such key"]),
        (
            "[knn5]",
            "[linear]",
            ["tiny.yaml:39: ", "evaluations.scenes: columns: evaluators=[knn] computes no score linear"],
        ),
        ("[knn5]", "[]", ["evaluations.scenes: needs at least one evaluator and one column"]),
        ("  scenes:", "  two words:", ["evaluations: 'two words' becomes a directory name"]),
        ("columns: [knn5]", "overrides: [seed=1]", ["evaluations.scenes: seed=1", "sets seed from seeds"]),
    ],
)
def test_a_mistake_in_an_evaluation_is_reported_with_its_line(tmp_path, old, new, parts):
    path = write_study(tmp_path / "tiny.yaml", EVALUATIONS.replace(old, new))
    text = message(path)
    assert [part for part in parts if part not in text] == [], text


def test_a_study_that_does_not_exist_names_the_nearest(tmp_path):
    tiny_study(tmp_path)
    assert f"Did you mean {tmp_path / 'tiny.yaml'}?" in message(tmp_path / "tinny.yaml")


def test_overrides_of_the_command_line_are_checked_too():
    check_overrides(["trainer.seed_of_something=1"])
    with pytest.raises(ConfigError, match="--out"):
        check_overrides(["output_dir=elsewhere"])
