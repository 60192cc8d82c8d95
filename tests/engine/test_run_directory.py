"""Run directories."""

from pathlib import Path

import pytest

from ssl_zoo.engine.run_directory import RunDirectory


def test_a_path_that_is_no_utf8_is_refused_before_the_first_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"output_dir='runs/caf.udce9' is no valid UTF-8"):
        RunDirectory(Path("runs/caf\udce9"), {})
    RunDirectory(Path("runs/café"), {})
