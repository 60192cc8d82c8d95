"""A server on this machine that redirects, breaks off and announces hashes as hosts of weights and the hub do."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

CONTENT = bytes(range(256)) * 512
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "c0ffee" * 6 + "c0ff"


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at addresses, and the files of one repository as the Hugging Face Hub does.

    Attributes:
        requests: method, path and range of every request.
        break_at: bytes after which an answer ends.
        repository: files of ``owner/tiny``; those of LFS are redirected to another host.
        announced: SHA-256 by file of LFS.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, str | None]] = []
        self.etag, self.break_at = '"v1"', None
        self.repository: dict[str, bytes] = {"config.json": b"{}", "model.safetensors": CONTENT, "flax.msgpack": b"x"}
        self.announced = {"model.safetensors": SHA256, "w.pth.tar": SHA256}

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path, wanted))
        kind = path.split("/")[1]
        if path.startswith("/api/models/owner/tiny/revision/"):
            self._json({"id": "owner/tiny", "sha": COMMIT, "siblings": []})
        elif path == f"/api/models/owner/tiny/tree/{COMMIT}":
            self._json([self._entry(name) for name in self.server.repository])
        elif kind == "owner":
            self._resolve(path.rpartition("/")[2])
        elif kind == "cdn":
            self._send(self.server.repository[path.rpartition("/")[2]], wanted)
        elif kind in ("hub", "wrong_hub"):
            announced = SHA256 if kind == "hub" else "0" * 64
            self._redirect(path.replace(kind, "file"), {"X-Linked-Etag": f'"{announced}"'})
        elif kind == "local":
            self._redirect("file:///etc/passwd", {})
        elif kind in ("missing", "gated", "api"):
            self.send_error(401 if kind == "gated" else 404)
        else:
            self._send(CONTENT, wanted)

    def _entry(self, name: str) -> dict:
        entry = {"type": "file", "path": name, "size": len(self.server.repository[name]), "oid": "0" * 40}
        if name in self.server.announced:
            entry["lfs"] = {"oid": self.server.announced[name], "size": entry["size"], "pointerSize": 130}
        return entry

    def _resolve(self, name: str) -> None:
        commit = {"X-Repo-Commit": COMMIT}
        if name not in self.server.repository:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self._end({**commit, "Content-Length": "0"})
        elif name in self.server.announced:
            size = str(len(self.server.repository[name]))
            linked = {"X-Linked-Etag": f'"{self.server.announced[name]}"', "X-Linked-Size": size}
            self._redirect(self.server.url(f"cdn/{name}", "localhost"), {**commit, **linked})
        else:
            content = self.server.repository[name]
            self.send_response(200)
            self._end({**commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Content-Length": str(len(content))})
            self._body(content)

    def _redirect(self, location: str, headers: dict[str, str]) -> None:
        self.send_response(302)
        self._end({"Location": location, "Content-Length": "0", **headers})

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self._end({"Content-Type": "application/json", "Content-Length": str(len(body))})
        self._body(body)

    def _send(self, content: bytes, wanted: str | None) -> None:
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if self.headers.get("If-Range", self.server.etag) != self.server.etag:
            start = 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self._end({"ETag": self.server.etag, "Content-Length": str(len(content) - start), **span})
        self._body(content[start:][: self.server.break_at])

    def _end(self, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, content: bytes) -> None:
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None: ...


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
