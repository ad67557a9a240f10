"""WebDataset shards that webdataset's own writer and tarfile wrote, here and at an address, and what can be wrong."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile

import numpy as np
import pytest

from engine import UsageError
from engine.plugins.data import WebDataset
from engine.plugins.data.tar import members
from engine.preparation import read
from engine.testing import check_source

FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def write(path, files, kind=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def files(pictures, png):
    """Return a function that makes the files of some records: an image and a label each."""

    def make(count=24, seed=0, ending="cls", label=lambda number: str(number).encode()):
        images, labels = pictures(count, seed)
        for number, (image, target) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield f"{number:04}.png", png(image)
            yield f"{number:04}.{ending}", label(target)

    return make


@pytest.fixture
def root(tmp_path, files):
    written = list(files())
    write(tmp_path / "train-000000.tar", written[:20])
    write(tmp_path / "train-000001.tar", written[20:])
    write(tmp_path / "test-000000.tar", files(12, 1))
    return tmp_path


def test_what_webdataset_writes_is_read(tmp_path, pictures, png, same_everywhere, engine):
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed")
    images, labels = pictures()
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for shard in range(3):
            with wds.TarWriter(str(tmp_path / split / f"{shard:06}.tar")) as writer:
                for number in range(shard * 8, shard * 8 + 8):
                    content = {"png": png(images[number]), "cls": int(labels[number]), "extra.txt": "other"}
                    writer.write({"__key__": f"folder/{number:05}", **content})
    source = WebDataset(root=str(tmp_path), size=16).build("train")
    assert (source.shape, source.classes, len(source)) == ((3, 16, 16), ("0", "1", "2"), 24)
    records = source.records([9, 0, 23])
    assert records.images == [png(images[n]) for n in (9, 0, 23)]
    assert records.targets.tolist() == labels[[9, 0, 23]].tolist()
    assert source.name_of(9) == f"{tmp_path}/train/000001.tar: folder/00009"
    same_everywhere(source)
    check_source(WebDataset(root=str(tmp_path), size=16))
    engine("data=webdataset", f"data.root={tmp_path}", "data.size=16", 'data.train="train/{000000..000001}.tar"')


@pytest.mark.parametrize("kind", FORMATS)
def test_every_member_is_where_tarfile_finds_it(tmp_path, kind):
    rng, path = np.random.default_rng(0), tmp_path / "a.tar"
    names = ["a.png", "x" * 90 + "/" + "y" * 60 + ".cls", "é" * 20 + ".png", ".hidden.png", "b"]
    names += [] if kind == "ustar" else ["folder/" * 40 + "z.png"]
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 511 * number, 1234567890.5 if kind == "pax" else 1234567890
            archive.addfile(member, io.BytesIO(rng.bytes(member.size)))
            link = tarfile.TarInfo(f"link{number}")
            link.type, link.linkname = tarfile.SYMTYPE, name[:90]
            archive.addfile(link)
    data = path.read_bytes()
    found = list(members(lambda offset, length: data[offset : offset + length], len(data), "a.tar"))
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    assert [(m.name, m.offset, m.length) for m in found] == expected
    assert len(found) == len(names)


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_labels_as_text_and_json(tmp_path, files, ending):
    names = ("eel", "cat", "dog")

    def label(number):
        return (
            json.dumps({"class": names[number], "x": 1}).encode() if ending == "json" else f"{names[number]}\n".encode()
        )

    write(tmp_path / "train.tar", files(ending=ending, label=label))
    write(tmp_path / "test.tar", files(6, 1, ending=ending, label=label))
    for split, count in (("train", 24), ("test", 6)):
        source = WebDataset(root=str(tmp_path), label="class").build(split)
        assert source.classes == ("cat", "dog", "eel")
        assert source.records(range(count)).targets.tolist() == [(2, 0, 1)[n % 3] for n in range(count)]
    write(tmp_path / "test.tar", [("a.png", b"p"), ("a.json", b"7")])
    with pytest.raises(UsageError, match=r"test\.tar: a has the label '7', which no training record has"):
        WebDataset(root=str(tmp_path), label="class").build("test")


def test_shards_at_an_address(root, pictures, png, refused, same_everywhere):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    memory = fsspec.filesystem("memory")
    for path in root.glob("*.tar"):
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    source = WebDataset(root="memory://shards", size=16).build("train")
    images, labels = pictures()
    assert source.records([11, 2]).images == [png(images[11]), png(images[2])]
    assert source.records([11, 2]).targets.tolist() == labels[[11, 2]].tolist()
    assert source.name_of(11) == "memory://shards/train-000001.tar: 0011"
    assert source.fingerprint == WebDataset(root=str(root), size=16).build("train").fingerprint
    check_source(WebDataset(root="memory://shards", size=16))
    local = WebDataset(root=f"file://{root}", size=16, train="train-{000000..000001}.tar").build("train")
    same_everywhere(local)
    message = refused(WebDataset(root="memory://shards", train="train-{000000..000002}.tar"))
    assert message.startswith("memory://shards/train-000002.tar cannot be read (")
    assert refused(WebDataset(root="memory://nothing")).startswith("data.root=memory://nothing has no train*.tar")
    assert refused(WebDataset(root="unknown://x")).startswith("data.root=unknown://x cannot be opened (")
    memory.rm("/shards", recursive=True)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (RuntimeError("403, message='no\nentry'"), "403, message='no entry'"),
        (FileNotFoundError("shards"), None),
        (NotImplementedError(), None),
    ],
)
def test_why_an_address_cannot_be_listed_is_said(refused, monkeypatch, error, reason):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")

    def ls(*_, **__):
        raise error

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", ls)
    message = refused(WebDataset(root="memory://shards"))
    known = f"memory://shards cannot be listed ({reason}); check data.root and the access"
    assert message == known if reason else message.startswith("data.root=memory://shards has no train*.tar")


def test_the_fingerprint_notices_what_changes(root, files):
    def fingerprint(**options):
        return WebDataset(root=str(root), **options).build("train").fingerprint

    seen = {fingerprint(), fingerprint(classes=9), fingerprint(train="train-000000.tar")}
    written = dict(list(files())[:20])
    changed = written["0003.png"][:-20] + bytes([written["0003.png"][-20] ^ 1]) + written["0003.png"][-19:]
    for name, content in (("0003.png", changed), ("0003.cls", b"1"), ("0003.png", changed + b"x")):
        write(root / "train-000000.tar", (written | {name: content}).items())
        seen.add(fingerprint())
    renamed = [(name.replace("0003", "000x"), content) for name, content in written.items()]
    write(root / "train-000000.tar", renamed)
    seen.add(fingerprint())
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"0002.cls": None}, ": 0002 has no label (.cls, .txt, .json); write one beside each image"),
        ({"0002.png": None}, ": 0002 has no image (.jpg, .jpeg, .png); leave such records out"),
        ({"0002.jpg": b"x"}, ": 0002 has more than one image; write each record under a name of its own"),
        ({"0002.txt": b"1"}, ": 0002 has more than one label"),
        ({"0002.cls": b"cat"}, ": 0002.cls holds no whole number: 'cat'"),
        ({"0002.cls": b"\xff\xfe"}, ": 0002.cls is no text"),
        ({"0002.cls": None, "0002.json": b"{"}, ": 0002.json is no text of JSON"),
        ({"0002.cls": None, "0002.json": b'{"a": 1}'}, ": 0002.json has no 'label', but a; set data.label"),
        ({"0002.cls": None, "0002.json": b"[1]"}, ": 0002.json holds no whole number or name: '[1]'"),
        ({"0002.cls": None, "0002.txt": b"cat"}, ": 0002 has the label 'cat'"),
        ({"0002.cls": b"3"}, ": 0002 has label 3, expected 0 to 2"),
        ({"0002.cls": b"-1"}, ": 0002 has label -1, expected 0 to 2"),
    ],
)
def test_wrong_records_are_named(tmp_path, files, refused, changes, reason):
    content = {**dict(files(6)), **changes}
    path = tmp_path / "train-0.tar"
    write(path, [(name, data) for name, data in content.items() if data is not None])
    message = refused(WebDataset(root=str(tmp_path), classes=3 if "expected" in reason else None))
    assert message.startswith((f"{path}{reason}", f"{path}: 0000 has the label 0, but others are names"))


def test_doubled_keys_are_named(tmp_path, files, refused):
    write(tmp_path / "train-0.tar", [*files(4), *files(1)])
    assert refused(WebDataset(root=str(tmp_path))).startswith(f"{tmp_path}/train-0.tar: 0000 has more than one image")


def test_shards_without_labels_or_images_and_empty_ones_are_named(root, refused, files):
    path = root / "train-000001.tar"
    write(path, [item for item in files() if item[0].endswith("png")])
    assert refused(WebDataset(root=str(root))).startswith(f"{path} has no labels (.cls, .txt, .json)")
    write(path, [("readme", b"text")])
    assert refused(WebDataset(root=str(root))).startswith(f"{path} has no images (.jpg, .jpeg, .png)")
    path.write_bytes(b"")
    assert refused(WebDataset(root=str(root))) == f"{path} is empty; fetch it again"
    path.write_bytes(gzip.compress(b"x" * 2000))
    assert "is compressed, which leaves no random access: unpack it first" in refused(WebDataset(root=str(root)))
    path.write_bytes(b"<html>404</html>")
    assert refused(WebDataset(root=str(root))) == f"{path} is no tar archive; fetch or write it again"


def test_every_truncation_is_refused(tmp_path, files, refused):
    path = tmp_path / "train.tar"
    write(path, files(6), tarfile.USTAR_FORMAT)
    whole = path.read_bytes()
    last = len(whole.rstrip(b"\0"))
    for length in [*range(0, last, 300), *range(512, last, 512), last, -(-last // 512) * 512]:
        path.write_bytes(whole[:length])
        assert refused(WebDataset(root=str(tmp_path), classes=3)).startswith(str(path))


@pytest.mark.parametrize("kind", FORMATS)
def test_hard_links_give_the_content_of_their_target(tmp_path, files, refused, kind):
    """Both an image and a label, and a link to a link, with names that only fit into headers of their own."""
    path, written = tmp_path / "train.tar", list(files(3))
    far = "" if kind == "ustar" else "folder/" * 40
    links = [("a.png", far + "0001.png"), ("a.cls", far + "0002.cls"), ("b.png", "a.png"), ("b.cls", "a.cls")]
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for name, content in written:
            member = tarfile.TarInfo(far + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in [*links, ("left alone.bin", "nothing")]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, target
            archive.addfile(member)
    source = WebDataset(root=str(tmp_path)).build("train")
    found, (picture, label) = source.records(range(5)), (dict(written)["0001.png"], 2)
    assert found.images[3:] == [picture, picture]
    assert found.targets.tolist() == [0, 1, 2, label, label]
    with tarfile.open(path, "a", format=FORMATS[kind]) as archive:
        member = tarfile.TarInfo("c.png")
        member.type, member.linkname = tarfile.LNKTYPE, "elsewhere.png"
        archive.addfile(member)
    assert refused(WebDataset(root=str(tmp_path))) == (
        f"{path}: c.png is a hard link to elsewhere.png, which is not before it in the shard; write the file itself"
    )


@pytest.mark.parametrize(
    "size", [b"-0000001000\0", b"+0000001000\0", b"0000_001000\0", b"\xff" * 10 + b"\xfe\0", b"8" * 12]
)
def test_a_size_that_is_no_number_is_refused(tmp_path, files, refused, size):
    path = tmp_path / "train.tar"
    write(path, files(6), tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    place = data.index(b"0003.png")
    data[place + 124 : place + 136] = size
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 155] = b"%06o\0" % sum(data[place : place + 512])
    path.write_bytes(data)
    assert refused(WebDataset(root=str(tmp_path))).startswith(f"{path} is damaged: its header at {place} has no size")


@pytest.mark.parametrize("size", ["x", "-1024", "1_0", "", "9" * 5000])
def test_an_extended_size_that_is_no_number_is_refused(tmp_path, refused, size):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("0000.png")
        member.pax_headers = {"size": size}
        archive.addfile(member)
    message = refused(WebDataset(root=str(tmp_path)))
    assert message.startswith(f"{path} is damaged: its extended header at 512 has no size")


def test_what_follows_the_end_is_refused(tmp_path, files, refused):
    path = tmp_path / "train.tar"
    write(path, files(6))
    path.write_bytes(path.read_bytes() * 2)
    assert "two archives in one: it goes on after its end" in refused(WebDataset(root=str(tmp_path)))


def test_a_damaged_header_is_refused(tmp_path, files, refused):
    path = tmp_path / "train.tar"
    write(path, files(6), tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    place = data.index(b"0003.png")
    data[place] ^= 1
    path.write_bytes(data)
    assert refused(WebDataset(root=str(tmp_path))).startswith(f"{path} is damaged: its bytes at {place} are no header")


def test_a_record_that_is_no_image_is_named(tmp_path, files):
    write(tmp_path / "train.tar", {**dict(files(6)), "0002.png": b"<html>404</html>"}.items())
    source = WebDataset(root=str(tmp_path)).build("train")
    with pytest.raises(UsageError, match=r"train\.tar: 0002 cannot be decoded \(not a JPEG or PNG\)"):
        read(source, range(6))


def test_a_shard_that_shrinks_while_it_is_read_is_an_error(root):
    source = WebDataset(root=str(root)).build("train")
    path = root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UsageError, match="was changed while it was in use: it has 5000 bytes"):
        source.records([20])


def test_what_is_missing_is_said_with_the_command_to_install_it(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    told = engine("data=webdataset", "data.root=memory://shards", code=2)
    assert told == "engine: data=webdataset needs fsspec: pip install 'conv-engine[webdataset]'"
