"""Directories are complete or missing."""

from pathlib import Path

from ssl_zoo.io import publish_directory


def test_a_filled_directory_appears_under_its_name(tmp_path: Path) -> None:
    filled = tmp_path / ".filling"
    filled.mkdir()
    (filled / "a").write_text("content")
    publish_directory(filled, tmp_path / "final")
    assert (tmp_path / "final" / "a").read_text() == "content" and not filled.exists()
