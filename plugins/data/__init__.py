"""Built-in data sources: embedded digits, the MNIST and CIFAR file formats, and folders of images."""

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


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in data sources."""
    store.add("data", "digits", Digits)
    store.add("data", "idx", Idx)
    store.add("data", "cifar10", Cifar10)
    store.add("data", "cifar100", Cifar100)
    store.add("data", "folder", Folder)
