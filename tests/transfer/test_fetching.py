"""Files by URL from a server of the standard library: kept once and verified, or one line and nothing kept."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from socket import socket

import pytest
import torch
from networks import state_of

from engine import UsageError
from engine.fetching import cache_folder, fetch, is_url
from engine.plugins.transfer import Head

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Server(ThreadingHTTPServer):
    """Gives one file by any name, or what ``answer`` says, and counts how often it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.content, self.status, self.cut, self.asked = CONTENT, 200, 0, 0
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        if self.server.status == 200:
            self.wfile.write(self.server.content[: len(self.server.content) - self.server.cut])

    def log_message(self, *_) -> None:
        """Say nothing."""


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(server, name="weights.pt"):
    return f"http://127.0.0.1:{server.server_port}/some/{name}?download=1"


def checksum(content=CONTENT):
    return hashlib.sha256(content).hexdigest()


def kept():
    return sorted(path.name for path in cache_folder().rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_file_is_downloaded_once(server):
    told = []
    path = fetch(url(server), checksum().upper(), told.append)
    assert path == cache_folder() / checksum() / "weights.pt"
    assert path.read_bytes() == CONTENT
    assert told[0] == f"downloading {url(server)}, 5.1 MB"
    assert told[1:] == [f"downloaded {n * 1.048576:.1f} MB of 5.1 MB" for n in range(1, 5)]
    assert fetch(url(server), checksum(), told.append) == path
    assert server.asked == 1


def test_what_was_kept_is_verified_again(server):
    path = fetch(url(server), checksum(), lambda text: None)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch(url(server), checksum(), lambda text: None).read_bytes() == CONTENT
    assert server.asked == 2


def test_several_at_once_download_once(server):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(url(server), checksum(), lambda text: None)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache_folder() / checksum() / "weights.pt"] * 4
    assert server.asked == 1


def test_another_checksum(server):
    other = checksum(b"other")
    with pytest.raises(UsageError, match=rf"has the SHA-256 {checksum()} instead of {other}; nothing was kept"):
        fetch(url(server), other, lambda text: None)
    assert kept() == []


def test_a_download_that_breaks_off(server):
    server.cut = 1_000_000
    with pytest.raises(UsageError, match=r"cannot be downloaded \(it broke off after 4.1 MB of 5.1 MB\); try again"):
        fetch(url(server), checksum(), lambda text: None)
    assert kept() == []
    server.cut = 0
    assert fetch(url(server), checksum(), lambda text: None).read_bytes() == CONTENT


def test_what_is_answered_with_one_line(server, tmp_path, monkeypatch):
    server.status = 404
    with pytest.raises(UsageError, match=r"the server answers 404 Not Found; check the address"):
        fetch(url(server), checksum(), lambda text: None)
    with pytest.raises(UsageError, match=r"over http anybody may change the file on its way; give transfer.sha256="):
        fetch(url(server), "", lambda text: None, "transfer.sha256")
    with pytest.raises(UsageError, match=r"sum=12: a SHA-256 has 64 hexadecimal digits"):
        fetch(url(server), "12", lambda text: None, "sum")
    with socket() as taken:  # a port at which nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/weights.pt"
        with pytest.raises(UsageError, match=r"cannot be downloaded \(.*refused.*\); try again, or give a local file"):
            fetch(address, checksum(), lambda text: None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot keep weights.pt \(Not a directory\); set XDG_CACHE_HOME elsewhere"):
        fetch(address, checksum(), lambda text: None)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://localhost:1/ü.pt", r"signs that an address has to escape: give https://localhost:1/%C3%BC.pt$"),
        ("https://localhost:1/a b.pt", r"give https://localhost:1/a%20b.pt$"),
        ("https://[::1/x", r"^https://\[::1/x is no address \(Invalid IPv6 URL\); check it$"),
        ("https://localhost:port/x", r"is no address \(Port could not be cast"),
        ("https:///x", r"it names no host"),
    ],
)
def test_an_address_that_is_none(address, message):
    assert is_url(address)
    with pytest.raises(UsageError, match=message):
        fetch(address)


def test_without_a_checksum_one_copy_is_kept_for_when_it_is_given(monkeypatch):
    asked = []

    def answer(request, timeout):
        asked.append(request.full_url)
        body = BytesIO(CONTENT)
        body.headers, body.url = {}, request.full_url
        return body

    monkeypatch.setattr("engine.fetching.urlopen", answer)
    address = "https://somewhere/weights.pt"
    assert fetch(address, tell=lambda text: None) == fetch(address, tell=lambda text: None)
    assert len(asked) == 2
    assert kept() == ["weights.pt"]
    assert fetch(address, checksum()).read_bytes() == CONTENT
    assert len(asked) == 2


def test_a_file_address_is_read_where_it_is(tmp_path):
    path = tmp_path / "my weights.pt"
    path.write_bytes(CONTENT)
    assert fetch(path.as_uri(), checksum()) == fetch(path.as_uri()) == path
    with pytest.raises(UsageError, match=r"has the SHA-256"):
        fetch(path.as_uri(), checksum(b"other"))
    assert kept() == []


def test_what_is_a_url():
    assert all(map(is_url, ("https://a/b.pt", "http://a/b", "file:///a")))
    assert not any(map(is_url, ("runs/a", "/a/b.pt", "c:/b.pt", "s3://a/b", "https.pt", "file:a")))


def test_a_run_starts_from_a_url(server, make, tmp_path, capsys):
    source = make("source", steps=3)
    source.fit()
    torch.save(source.model.state_dict(), tmp_path / "model.pt")
    server.content = (tmp_path / "model.pt").read_bytes()
    run = make("next", transfer=Head(weights=url(server), sha256=checksum(server.content)))
    assert all(torch.equal(value, state_of(source)[name]) for name, value in state_of(run).items())
    assert "layers have the weights of http://127.0.0.1" in capsys.readouterr().out
