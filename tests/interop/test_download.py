"""Published weights by their names: from addresses, and from a server that answers as the Hugging Face Hub does."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from download_server import COMMIT, CONTENT, SHA256, Server, serving

from ssl_zoo.interop.download import DownloadError, download
from ssl_zoo.interop.released import RELEASED, Released

FOLDER = Released("msn", "of this test", repo="owner/tiny")
FILE = Released("ijepa", "of this test", repo="owner/tiny", file="w.pth.tar")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as running:
        endpoint = running.url().rstrip("/")  # as HF_ENDPOINT sets it at the import of huggingface_hub
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
        yield running
        huggingface_hub.utils.close_session()


def test_published_weights_are_found_by_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.url("hub/tiny.pth")
    monkeypatch.setitem(RELEASED, "tiny", Released("mae", "of this test", url=url, sha256=SHA256))
    found = download("tiny", tmp_path)
    assert (found.path.name, found.method, found.path.read_bytes()) == ("tiny.pth", "mae", CONTENT)
    assert found.source == {"url": url}
    with pytest.raises(DownloadError, match=r"named 'tini'\. Did you mean 'tiny'"):
        download("tini", tmp_path)


def test_a_folder_of_the_hub_is_one_commit_with_the_files_of_its_weights(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RELEASED, "tiny", FOLDER)
    found = download("tiny", tmp_path)
    assert {path.name for path in found.path.iterdir()} == {"config.json", "model.safetensors"}
    assert (found.path / "model.safetensors").read_bytes() == CONTENT
    assert found.source == {"file": "owner/tiny", "url": "https://huggingface.co/owner/tiny", "revision": COMMIT}
    assert ("GET", "/cdn/model.safetensors", None) in server.requests


def test_a_folder_without_safetensors_gives_its_pickle_and_one_without_both_is_refused(
    server: Server, tmp_path: Path
) -> None:
    server.repository["pytorch_model.bin"] = server.repository.pop("model.safetensors")
    found = download("owner/tiny", tmp_path / "first")
    assert {path.name for path in found.path.iterdir()} == {"config.json", "pytorch_model.bin"}
    del server.repository["pytorch_model.bin"]
    with pytest.raises(DownloadError, match=r"has no model\.safetensors or pytorch_model\.bin"):
        download("owner/tiny", tmp_path / "second")


def test_a_repository_by_its_own_name_leaves_method_and_licence_open(server: Server, tmp_path: Path) -> None:
    found = download(f"owner/tiny@{COMMIT}", tmp_path)
    assert found.method is None
    assert found.source["licence"] == "unknown; see https://huggingface.co/owner/tiny"


def test_a_file_of_the_hub_is_downloaded_and_what_is_there_needs_no_hub(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RELEASED, "tiny", FILE)
    server.repository["w.pth.tar"] = CONTENT
    found = download("tiny", tmp_path)
    assert (found.path.name, found.path.read_bytes()) == ("w.pth.tar", CONTENT)
    assert found.source["revision"] == COMMIT
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert download("tiny", tmp_path) == found


def test_a_connection_that_breaks_off_continues_where_it_stopped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # what is received counts in these
    server.break_at = 1 << 16
    assert (download("owner/tiny", tmp_path).path / "model.safetensors").read_bytes() == CONTENT
    assert ("GET", "/cdn/model.safetensors", f"bytes={1 << 16}-") in server.requests


def test_a_file_whose_hash_is_not_the_announced_one_is_deleted(server: Server, tmp_path: Path) -> None:
    server.announced["model.safetensors"] = "0" * 64
    with pytest.raises(DownloadError, match=f"has the SHA-256 {SHA256}, not 0000.*deleted"):
        download("owner/tiny", tmp_path)
    assert not list(tmp_path.rglob("model.safetensors")) and not list(tmp_path.rglob("0" * 64))


def test_a_missing_repository_file_or_connection_is_reported_in_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RELEASED, "tiny", FILE)
    with pytest.raises(DownloadError, match=r"^https://huggingface\.co/owner/tiny.*404.*w\.pth\.tar.*check owner"):
        download("tiny", tmp_path)
    with pytest.raises(DownloadError, match=r"^https://huggingface\.co/someone/else: .*404.*check owner"):
        download("someone/else", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"can't be downloaded \(.*offline mode.*HF_HUB_OFFLINE"):
        download("owner/tiny", tmp_path)


def test_a_proxy_of_the_hub_that_refuses_is_reported(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy")
    with pytest.raises(DownloadError, match=r"can't be downloaded \(.*refused.*https_proxy"):
        download("owner/tiny", tmp_path)
