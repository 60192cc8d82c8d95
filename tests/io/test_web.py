"""Downloads from addresses by iopath: redirects, hashes, interrupted downloads, refusals."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from download_server import CONTENT, SHA256, Server, serving

from ssl_zoo.io import PATHS, DownloadError, WebHandler


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def place(server: Server, cache: Path, path: str) -> Path:
    return cache / f"127.0.0.1:{server.server_address[1]}" / path


def files(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}


def fetch(url: str, cache: Path, sha256: str | None = None) -> Path:
    return Path(PATHS.get_local_path(url, cache_dir=str(cache), sha256=sha256))


def test_a_redirected_file_is_downloaded_and_verified_by_the_announced_hash(server: Server, tmp_path: Path) -> None:
    file = fetch(server.url("hub/folder/w.pth"), tmp_path)
    assert file == place(server, tmp_path, "hub/folder/w.pth") and file.read_bytes() == CONTENT
    assert files(tmp_path) == {"w.pth"}


def test_the_cache_is_the_one_of_iopath(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    file = Path(PATHS.get_local_path(server.url("file/w.pth")))
    assert file == place(server, tmp_path / "cache", "file/w.pth")


def test_files_of_two_hosts_with_the_same_path_are_two_files(server: Server, tmp_path: Path) -> None:
    assert fetch(server.url("file/w"), tmp_path) != fetch(server.url("file/w", "localhost"), tmp_path)


def test_an_address_that_leads_out_of_the_cache_stays_in_it(server: Server, tmp_path: Path) -> None:
    file = fetch(server.url("file/%2e%2e/../../../../w"), tmp_path / "cache")
    assert file == place(server, tmp_path / "cache", "w")


def test_an_interrupted_download_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_at = 1000
    with pytest.raises(DownloadError, match=r"1000 of 131072 bytes.*the same command continues"):
        fetch(server.url("file/w.pth"), tmp_path, SHA256)
    assert "w.pth" not in files(tmp_path)
    server.break_at = None
    assert fetch(server.url("file/w.pth"), tmp_path, SHA256).read_bytes() == CONTENT
    assert server.requests[-1][2] == "bytes=1000-"


@pytest.mark.parametrize("torn", [False, True])
def test_a_file_that_may_have_changed_is_downloaded_from_the_start(server: Server, tmp_path: Path, torn: bool) -> None:
    server.break_at = 1000
    with pytest.raises(DownloadError):
        fetch(server.url("file/w.pth"), tmp_path)
    if torn:
        place(server, tmp_path, "file/w.pth.part.mark").write_text('"v')
    else:
        server.etag = '"v2"'
    server.break_at = None
    assert fetch(server.url("file/w.pth"), tmp_path).read_bytes() == CONTENT


def test_a_download_that_ended_before_its_file_was_renamed_is_completed(server: Server, tmp_path: Path) -> None:
    file = place(server, tmp_path, "file/w.pth")
    file.parent.mkdir(parents=True)
    file.with_name("w.pth.part").write_bytes(CONTENT)
    file.with_name("w.pth.part.mark").write_text('"v1"\n')
    assert fetch(server.url("file/w.pth"), tmp_path, SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["file/w.pth", "wrong_hub/w.pth"])
def test_another_hash_is_refused_and_nothing_is_kept(server: Server, tmp_path: Path, path: str) -> None:
    sha256 = "0" * 64 if path.startswith("file") else None
    with pytest.raises(DownloadError, match=f"has the SHA-256 {SHA256}, not 0000"):
        fetch(server.url(path), tmp_path, sha256)
    assert files(tmp_path) == set()


def test_a_complete_file_is_not_downloaded_again_and_an_altered_one_is(server: Server, tmp_path: Path) -> None:
    file = fetch(server.url("file/w.pth"), tmp_path, SHA256)
    fetch(server.url("file/w.pth"), tmp_path, SHA256)
    assert len(server.requests) == 1
    file.write_bytes(b"altered")
    assert fetch(server.url("file/w.pth"), tmp_path, SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/w", "answers 404 .*look for its address"),
        ("gated/w", "answers 401 .*by other means"),
        ("local/w", "can't be downloaded|answers"),
        ("", "is no address of a file"),
    ],
)
def test_a_refusal_is_reported_with_the_address(server: Server, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(DownloadError, match=f"{server.url(path)}.*({message})"):
        fetch(server.url(path), tmp_path)
    assert files(tmp_path) == set()


def test_a_proxy_that_refuses_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:secret@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(DownloadError, match=r"through the proxy 127\.0\.0\.1:9 of https_proxy.*refused") as refusal:
        WebHandler()._get_local_path("https://weights.invalid/w.pth", cache_dir=str(tmp_path))
    assert "secret" not in str(refusal.value)
