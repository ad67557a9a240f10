"""Tar shards at an http address, read by ranges from a server of the standard library."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from engine import UsageError
from engine.plugins.data import WebDataset

pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'fsspec[http]'")
wds = pytest.importorskip("webdataset", reason="webdataset is not installed")


class Server(ThreadingHTTPServer):
    """Serves a folder's files, whole or a range of them, and keeps the ranges that were asked for."""

    daemon_threads = True

    def __init__(self, folder) -> None:
        self.folder, self.ranges, self.broken = folder, [], False
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if self.server.broken or not path.is_file():
            self.send_response(503 if self.server.broken else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, wanted = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            self.server.ranges.append((path.name, first, last))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        with wds.TarWriter(str(tmp_path / f"{split}-000000.tar")) as writer:
            for number in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                writer.write({"__key__": f"{number:05}", "png": pixels, "cls": number % 3})
    server = Server(tmp_path)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def opened(server, **options):
    return WebDataset(root=server.address, size=16, classes=3, train="train-{000000..000000}.tar", **options)


def test_records_are_those_of_the_file_and_no_more_is_fetched(server, tmp_path):
    source = opened(server, test="test-{000000..000000}.tar").build("train")
    local = WebDataset(root=str(tmp_path), size=16, classes=3).build("train")
    server.ranges.clear()
    wanted = [7, 0, 11]
    assert source.records(wanted).images == local.records(wanted).images
    assert source.records(wanted).targets.tolist() == [1, 0, 2]
    asked = {last - first + 1 for _, first, last in server.ranges}
    assert asked == {len(data) for data in local.records(wanted).images}


def test_a_missing_shard_and_a_server_that_fails_are_named(server):
    with pytest.raises(UsageError, match=r"http://127\.0\.0\.1:\d+/train-000001\.tar cannot be read \("):
        WebDataset(root=server.address, size=16, train="train-{000000..000001}.tar").build("train")
    source = opened(server).build("train")
    server.broken = True
    with pytest.raises(UsageError, match=r"train-000000\.tar cannot be read \("):
        source.records([3])
