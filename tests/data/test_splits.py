"""How the files of a split are found by name, pattern and range."""

from __future__ import annotations

import pytest

from engine import UsageError
from engine.plugins.data.splits import LocalFolder, expanded, names_of, one_of, shards_of


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
        ("{x,y}-{0..1}", ["x-0", "x-1", "y-0", "y-1"]),
        ("{a,}b", ["ab", "b"]),
        ("{9..10}", ["9", "10"]),
    ],
)
def test_braces(pattern, names):
    assert list(expanded(pattern)) == names


@pytest.mark.parametrize("pattern", ["a-{0..", "a-0}", "a-{3..1}.tar", "a-{x}.tar", "a-{}"])
def test_other_braces_are_refused(pattern):
    with pytest.raises(UsageError, match=r"write (a range|it) as in name-\{000\.\.009\}\.tar"):
        list(expanded(pattern))


def folder_of(path, *files):
    for file in files:
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(b"x")
    return LocalFolder(str(path))


def test_shards_by_name(tmp_path):
    folder = folder_of(
        tmp_path, "train.tar", "train-1.tar", "train_0.tar", "train2.TAR", "training.tar", "train-1.txt", ".train.tar",
        "learn/b.tar", "learn/a.tar", "learn/c.txt", "data/val-0.tar", "sub/part-0.tar",
    )  # fmt: skip
    found = ["train-1.tar", "train.tar", "train2.TAR", "train_0.tar"]
    assert shards_of(folder, "train", ("train",), (".tar",)) == found
    assert shards_of(folder, "train", ("learn",), (".tar",)) == ["learn/a.tar", "learn/b.tar"]
    assert shards_of(folder, "train", ("train.tar",), (".tar",)) == ["train.tar"]
    assert shards_of(folder, "train", ("sub/part",), (".tar",)) == ["sub/part-0.tar"]
    assert shards_of(folder, "train", ("train[-_]*.tar",), (".tar",)) == ["train-1.tar", "train_0.tar"]
    assert shards_of(folder, "train", ("{learn/b,train-*}.tar",), (".tar",)) == ["learn/b.tar", "train-1.tar"]
    assert shards_of(folder, "test", names_of("test", "train", None), (".tar",), ("data",)) == ["data/val-0.tar"]
    folder_of(tmp_path, "test-0.tar")
    with pytest.raises(UsageError, match=r"has test and val; set data\.test to the one to use"):
        shards_of(folder, "test", names_of("test", "train", None), (".tar",), ("data",))
    for name, kind in (("none", "none*.tar"), ("none-*.tar", "none-*.tar")):
        with pytest.raises(UsageError) as error:
            shards_of(folder, "train", (name,), (".tar",))
        assert f"data.root={tmp_path} has no {kind}; " in str(error.value)


def test_one_file_or_folder(tmp_path):
    folder_of(tmp_path, "train.h5", "val.hdf5", "train_lmdb/data.mdb")
    endings = (".h5", ".hdf5", "")
    assert one_of(str(tmp_path), "train", ("train",), endings) == tmp_path / "train.h5"
    assert one_of(str(tmp_path), "train", ("train.h5",), endings) == tmp_path / "train.h5"
    assert one_of(str(tmp_path), "test", names_of("test", "train", None), endings) == tmp_path / "val.hdf5"
    with pytest.raises(UsageError, match="there is no such folder"):
        one_of(str(tmp_path / "absent"), "train", ("train",), endings)


def test_an_address_is_refused_by_all_that_read_files_of_this_machine():
    with pytest.raises(UsageError, match=r"^data\.root=s3://photos/set is an address, which only data=webdataset"):
        LocalFolder("s3://photos/set")
