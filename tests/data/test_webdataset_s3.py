"""Tar shards at an s3 address, read through s3fs from a stand-in for S3 in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import UsageError
from engine.plugins.data import WebDataset

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
wds = pytest.importorskip("webdataset", reason="webdataset is not installed")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Two shards of twelve images to train, one of four to test."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    for name, count in (("train-000000", 12), ("train-000001", 12), ("test-000000", 4)):
        with wds.TarWriter(str(folder / f"{name}.tar")) as writer:
            for number in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                writer.write({"__key__": f"{name}-{number}", "png": pixels, "cls": number % 3})
    return folder


@pytest.fixture(scope="module")
def bucket(shards) -> Iterator:
    """A bucket ``photos`` with the shards in its folder ``set``; all that asks for S3 in this process asks there."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
            environment.setenv(name, value)
        found = boto3.resource("s3").create_bucket(Bucket="photos")
        for path in shards.iterdir():
            found.upload_file(str(path), f"set/{path.name}")
        yield found
    s3fs.S3FileSystem.clear_instance_cache()  # it remembers the address
    server.stop()


def test_shards_in_a_bucket_are_found_and_give_what_the_files_give(bucket, shards):
    local = WebDataset(root=str(shards), size=16).build("train")
    for root in ("s3://photos/set", "s3://photos/set/"):
        source = WebDataset(root=root, size=16).build("train")
        assert (len(source), source.fingerprint) == (24, local.fingerprint)
        assert source.records([23, 0, 11]).images == local.records([23, 0, 11]).images
        assert source.name_of(12) == "s3://photos/set/train-000001.tar: train-000001-0"


def test_what_is_not_in_the_bucket_is_named(bucket):
    for root in ("s3://photos/other", "s3://nobody"):
        with pytest.raises(UsageError, match=rf"^data\.root={root} has no train\*\.tar"):
            WebDataset(root=root).build("train")
    with pytest.raises(
        UsageError, match=r"^s3://photos/set/train-000002\.tar cannot be read \(there is no such file\)"
    ):
        WebDataset(root="s3://photos/set", train="train-{000000..000002}.tar").build("train")
    source = WebDataset(root="s3://photos/set", classes=3).build("test")
    bucket.Object("set/test-000000.tar").delete()
    with pytest.raises(UsageError, match=r"^s3://photos/set/test-000000\.tar cannot be read \(there is no such file"):
        source.records([3])
