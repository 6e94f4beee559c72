"""Reading single files from package indexes, without any network but this machine's loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from zotune.demo.index import download_file
from zotune.demo.pip_client import PipSettings
from zotune.errors import UserError

DATA = b"the archive"
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "Thing-1.0.tar.gz"


class Handler(BaseHTTPRequestHandler):
    """An index with a JSON page (password u:p@), an HTML page with a base address, and the file itself."""

    def do_GET(self) -> None:
        login = "Basic " + base64.b64encode(b"u:p@").decode()
        if self.path.startswith("/json/") and self.headers.get("Authorization") != login:
            self.send_error(401)
        elif self.path == "/json/thing/":
            page = {"files": [{"filename": NAME, "url": f"../files/{NAME}#sha256=1"}]}
            self._answer(json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")
        elif self.path == "/html/thing/":
            self._answer(f'<base href="/else/"><a href="{NAME}">x</a>'.encode(), "text/html")
        elif self.path in (f"/json/files/{NAME}", f"/else/{NAME}"):
            self._answer(DATA, "application/gzip")
        elif self.path == "/local/thing/":
            self._answer(f'<a href="file:///etc/{NAME}">x</a>'.encode(), "text/html")
        else:
            self.send_error(404)

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """The port of a served index; no proxy and no netrc of the machine are used."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def _fetch(*indexes: str, find_links: tuple[str, ...] = (), sha256: str = SHA256, limit: int = 99) -> bytes:
    return download_file("thing", NAME, sha256, PipSettings(indexes, find_links), limit)


def test_html_and_json_pages(port: int) -> None:
    """Both page forms lead to the file; a base address is honoured, a password reaches its own server."""
    assert _fetch(f"http://127.0.0.1:{port}/html") == DATA
    assert _fetch(f"http://u:p%40@127.0.0.1:{port}/json/") == DATA


def test_the_next_index_is_asked(port: int) -> None:
    """An index without the project and one that refuses are passed over."""
    address = f"http://127.0.0.1:{port}"
    assert _fetch(f"{address}/absent", f"{address}/json", f"{address}/html") == DATA


def test_failures_are_told_without_the_password(port: int) -> None:
    """The error tells each server's answer: no file, refused, wrong hash, too long; never the password."""
    address = f"127.0.0.1:{port}"
    with pytest.raises(UserError, match="no such file.*401") as caught:
        _fetch(f"http://{address}/absent", f"http://u:secret@{address}/json")
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="another sha256"):
        _fetch(f"http://{address}/html", sha256="0" * 64)
    with pytest.raises(UserError, match="no such file"):
        _fetch(f"http://{address}/local")
    with pytest.raises(UserError, match="larger than 5 bytes"):
        _fetch(f"http://{address}/html", limit=5)
    with pytest.raises(UserError, match="no index"):
        _fetch()


def test_local_indexes_and_find_links(tmp_path: Path) -> None:
    """Folders on disk work as file addresses and as plain paths, as an index and as find-links."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / NAME).write_bytes(DATA)
    page = tmp_path / "simple" / "thing" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../files/{NAME}#sha256={SHA256}">x</a>')
    assert _fetch((tmp_path / "simple").as_uri()) == DATA
    assert _fetch(str(tmp_path / "simple")) == DATA
    assert _fetch(find_links=(str(tmp_path / "files"),)) == DATA
    assert _fetch(find_links=(page.as_uri(),)) == DATA
    with pytest.raises(UserError, match="no such file"):
        _fetch(str(tmp_path / "nowhere"))
