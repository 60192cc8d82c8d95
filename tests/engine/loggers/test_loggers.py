"""Loggers: files of a run and of its resumption, settings by name, and what is refused."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_commands import DEMO
from tiny_runs import StopAfter, checkpointer_of, logger, tiny_trainer

from ssl_zoo.config import ConfigError, compose
from ssl_zoo.engine.checkpoint.folders import checkpoint_path
from ssl_zoo.engine.checkpoint.state import read_checkpoint
from ssl_zoo.engine.loggers import LOGGERS, LoggedRun, Logger, LoggerConfig, Tags, build_loggers
from ssl_zoo.engine.loggers.base import monitor_config_class
from ssl_zoo.settings import setting


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_column_for_every_metric_and_a_row_for_every_record(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, num_steps=2, writers=[logger("csv", tmp_path)]).train()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert list(rows(tmp_path)[0]) == list(records[0])
    assert [float(row["loss"]) for row in rows(tmp_path)] == [record["loss"] for record in records]


def test_a_table_gets_new_columns_when_a_probe_adds_scores(tmp_path: Path) -> None:
    table = logger("csv", tmp_path)
    trainer = tiny_trainer(tmp_path, num_steps=1)
    table.open(trainer)
    table.write({"step": 1, "epoch": 0.5, "loss": 2.0})
    table.write({"step": 1, "epoch": 0.5, "knn20": 0.25})
    table.close()
    first, second = rows(tmp_path)
    assert first == {"step": "1", "epoch": "0.5", "loss": "2.0", "knn20": ""}
    assert second == {"step": "1", "epoch": "0.5", "loss": "", "knn20": "0.25"}


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_a_resumed_run_has_every_step_once(tmp_path: Path, name: str) -> None:
    """It is stopped at step 5 and resumes from the checkpoint of step 3."""
    writers = [logger("csv", tmp_path)] if name == "csv" else []
    tiny_trainer(tmp_path, writers=writers, hooks=[StopAfter(5)]).train()
    resumed = tiny_trainer(tmp_path, writers=[logger("csv", tmp_path)] if name == "csv" else [])
    checkpointer_of(resumed).resume(resumed, read_checkpoint(checkpoint_path(tmp_path, 3)))
    resumed.train()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [int(row["step"]) for row in (rows(tmp_path) if name == "csv" else map(json.loads, lines))]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_every_logger_with_settings_has_a_section_in_its_name() -> None:
    config = monitor_config_class()()
    assert config.tensorboard.key("histograms_every") == "monitor.tensorboard.histograms_every"
    assert config.wandb.mode == "offline"
    assert not hasattr(config, "jsonl")  # it has no settings


def test_a_plugin_adds_a_logger_with_settings_of_its_own(tmp_path: Path) -> None:
    @dataclass
    class NotesConfig(LoggerConfig):
        """Notes."""

        name: str = setting("notes.txt", "name of the file")

    class Notes(Logger):
        """Write notes."""

        def open(self, trainer): ...

        def write(self, record): ...

        def close(self): ...

    before = dict(LOGGERS._obj_map), dict(LOGGERS._configs)
    try:
        LOGGERS.register("notes", NotesConfig)(Notes)
        config = compose(DEMO, ["monitor.loggers=[notes]", "monitor.notes.name=a.txt"]).config
        [built] = build_loggers(config.monitor, LoggedRun(tmp_path, "", {}, "", Tags()))
        assert isinstance(built, Notes) and built.config.name == "a.txt"
    finally:
        for kept, now in zip(before, (LOGGERS._obj_map, LOGGERS._configs), strict=True):
            now.clear()
            now.update(kept)


def test_unknown_and_repeated_loggers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"monitor.loggers=\[csv, csv\]: name each logger once"):
        monitor_config_class()(loggers=["csv", "csv"])
    with pytest.raises(LookupError, match=r"no logger is named 'tensorbord'. Did you mean 'tensorboard'"):
        build_loggers(monitor_config_class()(loggers=["tensorbord"]), LoggedRun(tmp_path, "", {}, "", Tags()))
    with pytest.raises(ConfigError, match=r"monitor.tensorboard is a section"):
        compose(DEMO, ["monitor.tensorboard=false"])


def test_tags_have_groups_which_methods_and_evaluators_declare() -> None:
    tags = Tags({"target_cosine": "health", "rankme": "health"})
    record = {"step": 4, "epoch": 0.5, "loss": 1.0, "image_loss": 0.6, "lr": 0.1, "target_cosine": 0.2, "own": 3}
    assert tags.values({**record, "memory_bytes": 2**31, "samples": "a hash"}) == {
        "train/epoch": 0.5,
        "train/loss": 1.0,
        "train/losses/image": 0.6,
        "optim/lr": 0.1,
        "health/target_cosine": 0.2,
        "train/own": 3,
        "system/memory_gib": 2.0,
    }
    probe = {"step": 4, "epoch": 0.5, "knn20": 0.5, "rankme": 7.0, "knn20_random_init": 0.25}
    assert tags.values(probe) == {"probe/knn20": 0.5, "health/rankme": 7.0, "random_init/knn20": 0.25}


@pytest.mark.slow
def test_wandb_logs_offline_and_nothing_twice_when_a_run_resumes(tmp_path: Path, monkeypatch) -> None:
    wandb = pytest.importorskip("wandb")
    logged: list[dict] = []
    init = wandb.init

    def recorded(**settings):
        assert settings["mode"] == "offline"
        run = init(**settings)
        log = run.log
        monkeypatch.setattr(run, "log", lambda values: (logged.append(values), log(values)))
        return run

    monkeypatch.setattr(wandb, "init", recorded)
    record = {"epoch": 0.5, "loss": 1.0, "lr": 0.1}
    trainer = tiny_trainer(tmp_path)
    first = logger("wandb", tmp_path)
    first.open(trainer)
    for step in (1, 2, 3):
        first.write({"step": step, **record})
    first.image("masks", torch.zeros(3, 8, 8, dtype=torch.uint8), 3)
    first.close()
    trainer.step = 2  # killed after step 3, it resumes from step 2, and is probed at step 3
    second = logger("wandb", tmp_path)
    second.open(trainer)
    second.write({"step": 3, **record})
    second.write({"step": 3, "epoch": 0.5, "knn20": 0.5})
    second.write({"step": 4, **record})
    second.close()
    assert [values["step"] for values in logged if "train/loss" in values] == [1, 2, 3, 4]
    assert {"probe/knn20": 0.5, "step": 3} in logged
    # Both parts are of one run, so that `wandb sync` joins them.
    parts = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(parts) == 2 and len({part.name for part in parts}) == 1


def test_wandb_that_is_not_installed_is_named_with_the_remedy(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ssl_zoo.engine.loggers.wandb.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'ssl-zoo\[wandb\]'"):
        logger("wandb", tmp_path)
