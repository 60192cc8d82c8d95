"""A run that ends during the training of a streamed probe resumes that training."""

import pytest
from tiny_commands import DEMO, TINY, records

import ssl_zoo
from ssl_zoo.api.probe_checkpoints import ProbeCheckpoints

PROBE = ["probe.evaluators=[linear]", "probe.linear.epochs=2", "probe.linear.batch_size=32", "probe.linear.lrs=[0.1]"]
STREAMED = ["probe.linear.horizontal_flip=0.5", "probe.linear.checkpoint_every=1", "probe.every_steps=0"]
SETTINGS = [*TINY, *PROBE, *STREAMED, "probe.at_start=false", "trainer.num_steps=4", "trainer.checkpoint_every=2"]


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_run_that_ends_within_a_probe_resumes_the_training_of_the_probe(tmp_path, monkeypatch, caplog):
    def trained(name: str) -> ssl_zoo.Run:
        return ssl_zoo.train(DEMO, [*SETTINGS, f"output_dir={tmp_path / name}"], verbose=False)

    expected = trained("whole")
    save, saved = ProbeCheckpoints.save, []

    def save_and_die(self: ProbeCheckpoints, name: str, step: int, *state: object) -> None:
        saved.append(step)
        save(self, name, step, *state)
        if step == 4:
            raise Killed

    monkeypatch.setattr(ProbeCheckpoints, "save", save_and_die)
    with pytest.raises(Killed):
        trained("killed")
    assert saved == [1, 2, 3, 4] and (tmp_path / "killed" / "unfinished").exists()
    with caplog.at_level("INFO"):
        found = trained("killed")
    assert "resumed the training of a probe at step 4" in caplog.text and saved == [1, 2, 3, 4, 5, 6]
    assert {name: score.value for name, score in found.scores.items()} == {
        name: score.value for name, score in expected.scores.items()
    }
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert not any((tmp_path / name / "unfinished").exists() for name in ("whole", "killed"))
