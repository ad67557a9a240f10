"""Built-in data sources: embedded digits, MNIST's and CIFAR's files, folders of images, and the databases in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import Data, hookimpl, option, required

if TYPE_CHECKING:
    from engine.interfaces import Source
    from engine.registry import Store


@dataclass
class Digits(Data):
    """The 1,797 handwritten digits that come with scikit-learn: 8x8, grayscale, nothing to download.

    They are the test part of UCI's optical recognition of handwritten digits (Alpaydin and Kaynak 1998). The
    split is fixed: 1,437 to train and 360 to test, the same share of each class. Images are enlarged to ``size``
    (networks made for MNIST need at least 12 pixels).
    """

    size: int = option(16, "side of the images in pixels, a multiple of 8", at_least=8)

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError if ``size`` is no multiple of 8."""
        from .digits import open_digits

        return open_digits(split, self.size)


@dataclass
class Idx(Data):
    """MNIST, Fashion-MNIST, KMNIST and other sets in MNIST's IDX files, plain or gzipped."""

    root: str = required("folder of train-images-idx3-ubyte and the other three files, plain or .gz")
    classes: int = option(10, "number of classes; labels run from 0", at_least=1, at_most=256)

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming a file that is missing, truncated or not as its header says."""
        from .idx import open_idx

        return open_idx(self.root, split, self.classes)


@dataclass
class Cifar10(Data):
    """CIFAR-10 in its binary version; trains on the data_batch_N.bin files that are there (Krizhevsky 2009)."""

    root: str = required("folder of data_batch_1.bin ... test_batch.bin, or the one that cifar-10-batches-bin is in")

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming a file that is missing, truncated or has a bad label."""
        from .cifar import open_cifar10

        return open_cifar10(self.root, split)


@dataclass
class Cifar100(Data):
    """CIFAR-100 in its binary version, with its 100 fine or 20 coarse classes (Krizhevsky 2009)."""

    root: str = required("folder of train.bin and test.bin, or the one that cifar-100-binary is in")
    labels: str = option("fine", "fine: 100 classes, coarse: 20", choices=("fine", "coarse"))

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming a file that is missing, truncated or has a bad label."""
        from .cifar import open_cifar100

        return open_cifar100(self.root, split, self.labels)


@dataclass
class Folder(Data):
    """JPEG and PNG files in one folder per class: root/train/cat/1.jpg, root/test/cat/2.png.

    Sub-folders of a class belong to it. Names beginning with a dot and files of other types are not looked at.
    Classes are numbered in the order of their sorted names.
    """

    root: str = required("folder that holds the train and test folders")
    size: int = option(224, "side of the images in pixels, once scaled and cropped to the middle", at_least=1)
    channels: int = option(3, "3: colour, 1: grayscale", at_least=1, at_most=3)
    train: str = option("train", "sub-folder of the training classes")
    test: str | None = option(None, "sub-folder of the test classes; null: test, val, valid or validation")
    skip_unreadable: bool = option(False, "leave out files that are not readable images, naming them")

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming folders that are missing or empty and unreadable files."""
        from .folder import open_folder

        shape = (self.channels, self.size, self.size)
        return open_folder(self.root, split, shape, self.train, self.test, self.skip_unreadable)


@dataclass
class Hdf5(Data):
    """Data sets of images and labels in HDF5: root/train.h5 and root/test.h5, or one file with groups train and test.

    Images are uint8 [n, h, w, c], [n, c, h, w] or [n, h, w], or JPEG and PNG files as uint8 of variable length. An
    attribute class_names of the labels may name the classes.
    """

    root: str = required("folder of train.h5 and test.h5 (or .hdf5), or one file that holds groups of these names")
    images: str = option("images", "data set of the images")
    labels: str = option("labels", "data set of the labels, whole numbers from 0")
    layout: str = option("auto", "order of the images' sides; auto: as the number of channels tells, 4 at most",
                         choices=("auto", "nhwc", "nchw"))  # fmt: skip
    classes: int | None = option(None, "number of classes; null: the largest training label + 1", at_least=1)
    size: int | None = option(None, "side in pixels, scaled and cropped; null: as stored, files 224", at_least=1)
    channels: int = option(3, "of image files, 3: colour, 1: grayscale; pixels keep theirs", at_least=1, at_most=3)
    train: str = option("train", "name of the training file or group, with or without ending")
    test: str | None = option(None, "name of the test file or group; null: test, val, valid or validation")

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming a file or data set that is missing, truncated or of another kind."""
        from .hdf5 import open_hdf5

        sides = (self.classes, self.size, self.channels)
        return open_hdf5(self.root, split, self.train, self.test, self.images, self.labels, self.layout, *sides)


@dataclass
class _Datums(Data):
    """What Caffe's databases of Datum records have in common."""

    root: str = required(
        "folder of the databases train and test (or with the format's name: train_lmdb, train.lmdb ...)"
    )
    classes: int | None = option(None, "number of classes; null: the largest training label + 1", at_least=1)
    size: int | None = option(None, "side in pixels, scaled and cropped; null: as stored, files 224", at_least=1)
    channels: int = option(3, "of image files, 3: colour, 1: grayscale; pixels keep theirs", at_least=1, at_most=3)
    order: str = option("bgr", "order of raw colours; Caffe's is blue, green, red", choices=("bgr", "rgb"))
    train: str = option("train", "name of the training database")
    test: str | None = option(None, "name of the test database; null: test, val, valid or validation")


@dataclass
class Lmdb(_Datums):
    """Caffe's LMDB databases of Datum records, raw pixels or image files, in the order of their keys."""

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming a database or record that is missing, truncated or damaged."""
        from .lmdb import open_lmdb

        kinds = (self.classes, self.size, self.channels, self.order == "bgr")
        return open_lmdb(self.root, split, self.train, self.test, *kinds)


@dataclass
class LevelDb(_Datums):
    """Caffe's LevelDB databases of Datum records, raw pixels or image files, in the order of their keys.

    A database is read once when it is opened, and never written to: several processes may train on it.
    """

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming a database or record that is missing, truncated or damaged."""
        from .leveldb import open_leveldb

        kinds = (self.classes, self.size, self.channels, self.order == "bgr")
        return open_leveldb(self.root, split, self.train, self.test, *kinds)


@dataclass
class WebDataset(Data):
    """WebDataset's tar shards: a .jpg or .png and a .cls, .txt or .json with its label under one name.

    Shards are a folder's train*.tar and test*.tar, or those in its folders train and test; a name may be a pattern or
    have ranges in braces (quoted: 'data.train="imagenet-train-{000000..001281}.tar"').
    """

    root: str = required("folder of the shards, or its address (https://..., s3://...), which fsspec reads")
    label: str = option("label", "what the label is called in .json files")
    classes: int | None = option(None, "number of classes; null: the largest training label + 1", at_least=1)
    size: int = option(224, "side of the images in pixels, once scaled and cropped to the middle", at_least=1)
    channels: int = option(3, "3: colour, 1: grayscale", at_least=1, at_most=3)
    train: str = option("train", "what the training shards' names begin with, their folder, or a pattern")
    test: str | None = option(None, "the same of the test shards; null: test, val, valid or validation")

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming a shard or record that is missing, truncated or without a label."""
        from .webdataset import open_webdataset

        sides = (self.classes, self.size, self.channels)
        return open_webdataset(self.root, split, self.train, self.test, self.label, *sides)


@dataclass
class Arrow(Data):
    """Parquet, Arrow and Feather files with a column of images and one of labels, as Hugging Face's datasets write.

    Files are a folder's train*.parquet (or .arrow, .feather, .ipc), those in its folder train, or data/train*.
    """

    root: str = required("folder of the files, or of the folders train and test with the files in them")
    image: str | None = option(None, "column of the images; null: as the schema says, or image or img")
    label: str | None = option(None, "column of the labels; null: as the schema says, or label or labels")
    classes: int | None = option(None, "number of classes; null: as the schema says, or as the labels are", at_least=1)
    size: int = option(224, "side of the images in pixels, once scaled and cropped to the middle", at_least=1)
    channels: int = option(3, "3: colour, 1: grayscale", at_least=1, at_most=3)
    cache: int = option(512, "MiB of unpacked images that each process keeps of compressed files", at_least=1)
    train: str = option("train", "what the training files' names begin with, their folder, or a pattern")
    test: str | None = option(None, "the same of the test files; null: test, val, valid or validation")

    def build(self, split: str) -> Source:
        """Open a split; raises UsageError naming a file, column or row that is missing, damaged or of another kind."""
        from .arrow import open_arrow

        columns, sides = (self.image, self.label), (self.size, self.channels, self.cache)
        return open_arrow(self.root, split, self.train, self.test, *columns, self.classes, *sides)


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in data sources."""
    store.add("data", "digits", Digits)
    store.add("data", "idx", Idx)
    store.add("data", "cifar10", Cifar10)
    store.add("data", "cifar100", Cifar100)
    store.add("data", "folder", Folder)
    store.add("data", "hdf5", Hdf5)
    store.add("data", "lmdb", Lmdb)
    store.add("data", "leveldb", LevelDb)
    store.add("data", "webdataset", WebDataset)
    store.add("data", "arrow", Arrow)
