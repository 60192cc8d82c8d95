"""Files are whole or not there."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ssl_zoo.io import publish_directory


def test_a_directory_appears_when_it_is_filled(tmp_path: Path) -> None:
    with publish_directory(tmp_path / "final", tmp_path / ".filling") as folder:
        (folder / "a").write_text("content")
        assert not (tmp_path / "final").exists()
    assert (tmp_path / "final" / "a").read_text() == "content" and not (tmp_path / ".filling").exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
)
def test_a_directory_that_can_not_be_filled_is_named_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(OSError, match=r"final can't be written: .*No space left on device"),
        publish_directory(tmp_path / "final", tmp_path / ".filling") as folder,
    ):
        (folder / "a").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []
