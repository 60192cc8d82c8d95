"""Downloads from a server on this machine that redirects, breaks off, and announces hashes as a hub does."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_zoo.interop.download import DownloadError, download, fetch
from ssl_zoo.interop.released import RELEASED, Released

CONTENT = bytes(range(256)) * 512
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; ``requests`` has the path and the range of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.etag, self.break_at = '"v1"', None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        kind = self.path.split("/")[1]
        if self.path.endswith("preprocessor_config.json"):
            self.send_error(404)
        elif kind in ("hub", "wrong_hub"):
            self.send_response(302)
            self.send_header("Location", self.path.replace(kind, "file"))
            self.send_header("X-Linked-Etag", f'"{SHA256 if kind == "hub" else "0" * 64}"')
            self.end_headers()
        elif kind == "local":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        elif kind in ("missing", "gated"):
            self.send_error(404 if kind == "missing" else 401)
        else:
            self._send(wanted)

    def _send(self, wanted: str | None) -> None:
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if self.headers.get("If-Range", self.server.etag) != self.server.etag:
            start = 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.server.break_at])

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def test_a_redirected_file_is_downloaded_and_verified_by_the_announced_hash(server: Server, tmp_path: Path) -> None:
    seen = []
    fetch(server.url("hub/w.pth"), tmp_path / "w.pth", progress=lambda have, total: seen.append((have, total)))
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_an_interrupted_download_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_at = 1000
    with pytest.raises(DownloadError, match=r"1000 of 131072 bytes.*the same command continues"):
        fetch(server.url("file/w.pth"), tmp_path / "w.pth", sha256=SHA256)
    assert not (tmp_path / "w.pth").exists()
    server.break_at = None
    fetch(server.url("file/w.pth"), tmp_path / "w.pth", sha256=SHA256)
    assert server.requests[-1][1] == "bytes=1000-"
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_downloaded_from_the_start(server: Server, tmp_path: Path) -> None:
    server.break_at = 1000
    with pytest.raises(DownloadError):
        fetch(server.url("file/w.pth"), tmp_path / "w.pth")
    server.break_at, server.etag = None, '"v2"'
    fetch(server.url("file/w.pth"), tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_download_that_ended_before_its_file_was_renamed_is_completed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    (tmp_path / "w.pth.part.json").write_text('{"etag": "\\"v1\\"", "sha256": null}')
    fetch(server.url("file/w.pth"), tmp_path / "w.pth", sha256=SHA256)
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["file/w.pth", "wrong_hub/w.pth"])
def test_another_hash_is_refused_and_nothing_is_kept(server: Server, tmp_path: Path, path: str) -> None:
    sha256 = "0" * 64 if path.startswith("file") else None
    with pytest.raises(DownloadError, match=f"has the SHA-256 {SHA256}, not 0000"):
        fetch(server.url(path), tmp_path / "w.pth", sha256=sha256)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_file_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(CONTENT)
    fetch(server.url("file/w.pth"), tmp_path / "w.pth", sha256=SHA256)
    assert server.requests == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/w", "answers 404"),
        ("gated/w", "by other means and import"),
        ("local/w", "can't be downloaded|answers"),
    ],
)
def test_a_refusal_of_the_server_is_reported_with_the_address(
    server: Server, tmp_path: Path, path: str, message: str
) -> None:
    with pytest.raises(DownloadError, match=message):
        fetch(server.url(path), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_published_weights_are_found_by_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RELEASED, "tiny", Released("mae", server.url("hub/tiny.pth"), "of this test", SHA256))
    file, released = download("tiny", tmp_path)
    assert (file.name, released.method, file.read_bytes()) == ("tiny.pth", "mae", CONTENT)
    with pytest.raises(DownloadError, match=r"named 'tini'\. Did you mean 'tiny'"):
        download("tini", tmp_path)


def test_a_folder_of_the_hub_may_lack_its_preprocessor(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RELEASED, "tiny", Released("msn", server.url("hub/owner/tiny"), "of this test"))
    folder, _ = download("tiny", tmp_path)
    assert folder == tmp_path / "tiny"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
