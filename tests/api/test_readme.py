"""README's Python snippet runs as it stands."""

import re
from pathlib import Path

import pytest
from tiny_commands import DEMO, ROOT, TINY

import ssl_zoo

README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snippet, _ = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    tiny = [*TINY, "probe.evaluators=[]", "trainer.num_steps=2", "monitor.images_every=0"]
    ssl_zoo.train(DEMO, [*tiny, f"output_dir={tmp_path / 'runs' / 'ijepa' / 'demo'}"], verbose=False)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet, names)
    assert names["features"].shape == (1, names["encoder"].embed_dim)
    assert 0 <= names["scores"]["knn5"].value <= 1
