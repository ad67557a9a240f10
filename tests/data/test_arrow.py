"""Arrow, Feather and Parquet files that pyarrow wrote as Hugging Face's datasets do, and what can be wrong."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from engine import UsageError
from engine.plugins.data import Arrow
from engine.preparation import read
from engine.testing import check_source

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
feather, parquet = pytest.importorskip("pyarrow.feather"), pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "dog", "eel"]


def huggingface(table, **features):
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path, table, rows=7):
    """Write a table in the way that the file's name says, in groups of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=rows)
    elif path.suffix == ".feather":
        feather.write_feather(table, str(path), compression="lz4", chunksize=rows)
    else:
        new = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)


@pytest.fixture
def tables(pictures, png):
    """Return a function that makes a table: images as structs with bytes or as plain binary, and labels."""

    def make(count=24, seed=0, struct=True, kind=None, labels=None):
        images, targets = pictures(count, seed)
        content = [png(image) for image in images]
        column = [{"bytes": data, "path": None} for data in content] if struct else content
        types = pa.struct([("bytes", kind or pa.binary()), ("path", pa.string())]) if struct else kind or pa.binary()
        return pa.table({
            "image": pa.array(column, types),
            "label": pa.array(targets.tolist() if labels is None else labels),
        })  # fmt: skip

    return make


ENDINGS = (".parquet", ".arrow", ".ipc", ".feather")


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
def test_images_are_what_was_written(tmp_path, tables, pictures, png, ending, struct, same_everywhere):
    table = tables(struct=struct)
    write(tmp_path / f"train-00000-of-00002{ending}", table.slice(0, 10))
    write(tmp_path / f"train-00001-of-00002{ending}", table.slice(10))
    write(tmp_path / f"test-00000-of-00001{ending}", tables(12, 1, struct))
    source = Arrow(root=str(tmp_path), size=16, cache=1).build("train")
    images, labels = pictures()
    assert (source.shape, source.classes, len(source)) == ((3, 16, 16), ("0", "1", "2"), 24)
    records = source.records([11, 0, 23, 11])
    assert records.images == [png(images[n]) for n in (11, 0, 23, 11)]
    assert records.targets.tolist() == labels[[11, 0, 23, 11]].tolist()
    assert source.name_of(11) == f"{tmp_path}/train-00001-of-00002{ending}: row 1"
    assert source.name_of(20) == f"{tmp_path}/train-00001-of-00002{ending}: row 10"
    same_everywhere(source)
    check_source(Arrow(root=str(tmp_path), size=16))


@pytest.mark.parametrize("ending", ENDINGS)
def test_unpacked_groups_are_let_go(tmp_path, pictures, ending):
    """Images of 300 kB, of which a cache of 1 MiB holds one group of two."""
    content = [np.random.default_rng(n).bytes(300_000) for n in range(12)]
    write(tmp_path / f"train{ending}", pa.table({"image": content, "label": list(range(12))}), rows=2)
    source = Arrow(root=str(tmp_path), cache=1).build("train")
    for indices in ([0, 11, 5], [5, 4, 0], range(12), [11, 0]):
        assert source.records(indices).images == [content[n] for n in indices]
    kept = source._groups.get()
    assert kept._bytes == sum(array.nbytes for array in kept._kept.values()) <= 1 << 20


def test_hugging_faces_metadata_names_columns_and_classes(tmp_path, tables, engine):
    kinds = {
        "picture": {"_type": "Image"},
        "fine": {"_type": "ClassLabel", "names": NAMES},
        "label": {"dtype": "int64"},
    }
    for split in ("train", "validation"):
        table = tables().rename_columns(["picture", "fine"]).append_column("label", pa.array([9] * 24))
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet", huggingface(table, **kinds))
    source = Arrow(root=str(tmp_path)).build("test")
    assert source.classes == tuple(NAMES)
    assert source.records(range(4)).targets.tolist() == [0, 1, 2, 0]
    other = Arrow(root=str(tmp_path), label="label", classes=10).build("train")
    assert other.records([0, 1]).targets.tolist() == [9, 9]
    engine("data=arrow", f"data.root={tmp_path}", "data.size=16")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_labels_that_are_names(tmp_path, tables, kind, refused):
    names = [NAMES[::-1][n % 3] for n in range(24)]
    write(tmp_path / "train.parquet", tables(labels=pa.array(names).cast(kind)))
    write(tmp_path / "test.parquet", tables(2, labels=["dog", "fox"]))
    source = Arrow(root=str(tmp_path)).build("train")
    assert source.classes == tuple(NAMES)
    assert source.records(range(4)).targets.tolist() == [2, 1, 0, 2]
    assert refused(Arrow(root=str(tmp_path)), "test") == (
        f"{tmp_path}/test.parquet: row 1 has the label 'fox', which no training record has"
    )


def test_slices_and_wide_offsets(tmp_path, tables, pictures, png):
    images, _ = pictures()
    write(tmp_path / "train.ipc", tables(kind=pa.large_binary()).slice(5, 9))
    source = Arrow(root=str(tmp_path)).build("train")
    assert source.records(range(9)).images == [png(image) for image in images[5:14]]


def test_the_fingerprint_notices_what_changes(tmp_path, tables):
    for ending in ENDINGS:
        path = tmp_path / f"train{ending}"

        def fingerprint(path=path, **options):
            return Arrow(root=str(path.parent), train=path.name, **options).build("train").fingerprint

        table = tables()
        write(path, table)
        seen = {fingerprint(), fingerprint(classes=9)}
        labels = [n % 3 for n in range(24)]
        changed = table["image"].to_pylist()
        changed[7]["bytes"] = changed[7]["bytes"][:-1] + b"!"
        for other in (
            tables(labels=[*labels[:-1], 0]),
            table.set_column(0, "image", pa.array(changed, table["image"].type)),
            table.slice(1),
        ):
            write(path, other)
            seen.add(fingerprint())
        assert len(seen) == 5
        write(path, table)
        assert fingerprint() in seen


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_fingerprint_notices_which_columns_are_read(tmp_path, tables, ending):
    other = tables(seed=1)["image"]
    write(tmp_path / f"train{ending}", tables().append_column("other", other))
    seen = {Arrow(root=str(tmp_path), image=name).build("train").fingerprint for name in ("image", "other")}
    assert len(seen) == 2


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_whose_labels_mean_something_else_are_refused(tmp_path, tables, refused, ending):
    def described(names):
        return huggingface(tables(), label={"_type": "ClassLabel", "names": names})

    first, other = tmp_path / f"train-0{ending}", tmp_path / f"train-1{ending}"
    write(first, described(NAMES))
    for names in (NAMES[::-1], []):
        write(other, described(names))
        assert refused(Arrow(root=str(tmp_path))) == (
            f"{other}: its ClassLabel's names are not those of {first}; write all files with the same names"
        )
    text = tables(labels=["cat"] * 24)
    write(first, tables())
    write(other, text)
    assert refused(Arrow(root=str(tmp_path))) == (
        f"{other}: its labels are names, those of {first} whole numbers: use one kind"
    )
    other.unlink()
    for train, test, kinds in (
        (text, tables(), ("a whole number as its label, the training records a name")),
        (tables(), tables(labels=["1"] * 24), ("a name as its label, the training records a whole number")),
    ):
        write(first, train)
        write(tmp_path / f"test{ending}", test)
        assert refused(Arrow(root=str(tmp_path)), "test") == f"{tmp_path}/test{ending}: row 0 has {kinds}: use one kind"


def test_nulls_inside_a_dictionary_are_named(tmp_path, tables, refused):
    labels = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2] * 8, pa.int8()), pa.array(["cat", "dog", None]))
    write(tmp_path / "train.ipc", tables(labels=labels))
    assert refused(Arrow(root=str(tmp_path))) == f"{tmp_path}/train.ipc: row 2 has no label; leave such rows out"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_set_with_a_missing_image_can_be_opened(tmp_path, tables, ending):
    table = tables()
    images = table["image"].to_pylist()
    images[9] = None
    write(tmp_path / f"train{ending}", table.set_column(0, "image", pa.array(images, table["image"].type)))
    source = Arrow(root=str(tmp_path)).build("train")
    assert len(source.records(range(9)).images) == 9
    with pytest.raises(UsageError, match=rf"train\{ending}: row 9 holds no image"):
        source.records(range(12))


def test_wrong_columns_are_named(tmp_path, tables, refused):
    path, table = tmp_path / "train.parquet", tables()

    def message(changed, **options):
        write(path, changed)
        text = refused(Arrow(root=str(tmp_path), **options))
        assert text.startswith(str(path))
        return text.removeprefix(str(path))

    assert message(table, image="x") == " has no column x, but image, label; set data.image"
    assert message(table.rename_columns(["a", "b"])) == " has no column image, but a, b; set data.image"
    assert message(table.drop_columns("label")) == " has no column label, but image; set data.label"
    assert message(table.append_column("img", table["image"])).startswith(" has 2 columns of images: image, img; set")
    assert message(table, image="label").startswith(": column label is int64, expected binary or a struct with bytes")
    assert message(tables(labels=[0.5] * 24)).startswith(": column label is double, expected whole numbers or names")
    assert message(tables(labels=[0, 1, None] * 8)) == ": row 2 has no label; leave such rows out"
    assert message(tables(labels=[0, 1, 3] * 8), classes=3).startswith(": row 2 has label 3, expected 0 to 2")
    features = {"label": {"_type": "ClassLabel", "names": NAMES}}
    hidden = huggingface(tables(labels=[0, 1, -1] * 8), **features)
    assert message(hidden) == ": row 2 has label -1, expected 0 to 2; leave such records out"
    assert message(table.slice(0, 0)) == " holds no records; fetch or write it again"
    broken = table.replace_schema_metadata({"huggingface": "{"})
    assert message(broken) == ": the schema's huggingface metadata cannot be read; write the file again"


@pytest.mark.parametrize("ending", ENDINGS)
def test_missing_images_and_other_files_are_named(tmp_path, tables, refused, ending):
    path, table = tmp_path / f"train{ending}", tables()
    images = table["image"].to_pylist()
    for missing in (None, {"bytes": None, "path": "elsewhere.png"}, {"bytes": b"", "path": None}):
        images[9] = missing
        write(path, table.set_column(0, "image", pa.array(images, table["image"].type)))
        assert refused(Arrow(root=str(tmp_path))).startswith(f"{path}: row 9 holds no image")
    images[9] = {"bytes": b"<html>404</html>", "path": None}
    write(path, table.set_column(0, "image", pa.array(images, table["image"].type)))
    source = Arrow(root=str(tmp_path)).build("train")
    with pytest.raises(UsageError, match=rf"train\{ending}: row 9 cannot be decoded \(not a JPEG or PNG\)"):
        read(source, range(12))


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_truncation_is_refused(tmp_path, tables, refused, ending):
    path = tmp_path / f"train{ending}"
    write(path, tables())
    whole = path.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 20), len(whole) - 8, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert refused(Arrow(root=str(tmp_path))).startswith(str(path))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path, tables, ending):
    path = tmp_path / f"train{ending}"
    write(path, tables())
    source = Arrow(root=str(tmp_path)).build("train")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UsageError, match="was changed while it was in use: it has 5000 bytes"):
        source.records(range(24))


def test_a_compressed_stream_is_refused(tmp_path, tables, refused):
    path, table = tmp_path / "train.arrow", tables()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
        writer.write_table(table)
    assert "is a compressed stream, which has no random access" in refused(Arrow(root=str(tmp_path)))


def test_what_is_missing_is_said_with_the_command_to_install_it(tmp_path, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    told = engine("data=arrow", f"data.root={tmp_path}", code=2)
    assert told == "engine: data=arrow needs pyarrow: pip install 'conv-engine[arrow]'"
