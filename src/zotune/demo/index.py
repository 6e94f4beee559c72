"""One file of a package index, found with pip's settings, checked by its sha256, and never run or installed.

For a source archive `pip download` runs the archive's build to learn its metadata. So the index is read here
instead, by the simple repository API (PEP 503 pages and PEP 691 JSON), find-links and local folders included.
"""

from __future__ import annotations

import base64
import hashlib
import html.parser
import http.client
import json
import netrc
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import final
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from zotune.demo.pip_client import PipSettings
from zotune.errors import UserError

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PAGE_LIMIT = 64 << 20
_ATTEMPTS = 3


def download_file(project: str, filename: str, sha256: str, settings: PipSettings, limit: int) -> bytes:
    """The bytes of `filename` of `project` from the first place that serves it with this sha256.

    Places: find-links, then indexes. Raises UserError that says what each place answered.
    """
    pages = [(_as_url(place), "find-links") for place in settings.find_links]
    pages += [(_as_url(place).rstrip("/") + f"/{project}/", "index") for place in settings.indexes]
    answers = []
    for page, kind in pages:
        # Never the whole address: it may hold a password.
        where = f"{kind} {urlsplit(page).hostname or 'on this machine'}"
        try:
            links = [link for link in _links(page, settings) if _basename(link) == filename.lower()]
            for link in links:
                data = _get(link, settings, limit, owner=page)[0]
                if hashlib.sha256(data).hexdigest() == sha256:
                    return data
            answers.append(f"{where}: {'the file has another sha256' if links else 'no such file'}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.append(f"{where}: {error}")
    raise UserError(f"{filename} was not found: {'; '.join(answers) or 'pip is configured with no index'}")


def _as_url(place: str) -> str:
    # A Windows path has a one-letter "scheme".
    return place if len(urlsplit(place).scheme) > 1 else Path(place).expanduser().resolve().as_uri()


def _basename(link: str) -> str:
    return unquote(urlsplit(link).path).rpartition("/")[2].lower()


def _links(page: str, settings: PipSettings) -> list[str]:
    """Absolute links of a simple page, a find-links page or a local folder. A missing page has none."""
    if urlsplit(page).scheme == "file":
        path = Path(urllib.request.url2pathname(urlsplit(page).path))
        if not path.exists():
            return []
        if path.is_dir():
            files = [entry for entry in path.iterdir() if entry.is_file()]
            links = [file.as_uri() for file in files]
            for file in files:
                links += _links(file.as_uri(), settings) if file.name == "index.html" else []
            return links
    try:
        body, kind, base = _get(page, settings, _PAGE_LIMIT, owner=page)
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            return []
        raise
    if "json" in kind:
        targets = [str(file["url"]) for file in json.loads(body)["files"]]
    else:
        parser = _Anchors()
        parser.feed(body.decode("utf-8", errors="replace"))
        targets, base = parser.targets, urljoin(base, parser.base)
    allowed = ("http", "https", "file") if urlsplit(page).scheme == "file" else ("http", "https")
    links = [urldefrag(urljoin(base, target)).url for target in targets]
    return [link for link in links if urlsplit(link).scheme in allowed]


@final
class _Anchors(html.parser.HTMLParser):
    """Collects the targets of a page's links, and its base address."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.targets.append(target)
        elif tag == "base" and target:
            self.base = target


def _get(url: str, settings: PipSettings, limit: int, owner: str) -> tuple[bytes, str, str]:
    """(body, content type, final address). Credentials in `owner` go to its own host only.

    Raises OSError, HTTPException or ValueError.
    """
    parts = urlsplit(url)
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
    request.add_header("User-Agent", "zotune")
    request.add_header("Accept", _ACCEPT if url == owner else "*/*")
    if login := _login(url, owner):
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    tls = _tls(parts.hostname, settings)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=tls)]
    if settings.proxy:
        handlers.append(urllib.request.ProxyHandler({"http": settings.proxy, "https": settings.proxy}))
    opener = urllib.request.build_opener(*handlers)
    for attempt in range(_ATTEMPTS):
        try:
            with opener.open(request, timeout=settings.timeout) as answer:
                body = answer.read(limit + 1)
                if len(body) > limit:
                    raise ValueError(f"the answer is larger than {limit} bytes")
                return body, answer.headers.get("Content-Type", ""), answer.url
        except (OSError, http.client.HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or parts.scheme == "file" or attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(1 + attempt)
    raise AssertionError("unreachable")


def _login(url: str, owner: str) -> str:
    """USER:PASSWORD for `url`: from the index's address if that is the same server, else from netrc."""
    asked, known = urlsplit(url), urlsplit(owner)
    if known.username is not None:
        if (asked.scheme, asked.hostname, asked.port) == (known.scheme, known.hostname, known.port):
            return f"{unquote(known.username)}:{unquote(known.password or '')}"
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(asked.hostname or "")
    except (OSError, netrc.NetrcParseError):
        return ""
    return f"{found[0]}:{found[2]}" if found else ""


def _tls(host: str | None, settings: PipSettings) -> ssl.SSLContext:
    # pip reads the two variables as well.
    cert = settings.cert or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None
    context = ssl.create_default_context(cafile=cert)
    if cert is None:
        try:  # some Python builds have no system certificates
            import certifi

            context.load_verify_locations(certifi.where())
        except ImportError:
            pass
    if settings.client_cert:
        context.load_cert_chain(settings.client_cert)
    if host in {entry.partition(":")[0] for entry in settings.trusted_hosts}:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
