"""Where the images of a batch are: in memory or in files, as pixels or as JPEG, each of its own size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine import ops
from engine.decode import decode_whole

ADDRESS, FILE, OFFSET, BYTES, CHECKSUM, ENCODING, HEIGHT, WIDTH = range(8)  # columns of a table: csrc/cpu/pictures.h
INTERLEAVED, PLANAR, JPEG = range(3)
UNCHECKED = -1


@dataclass
class Pictures:
    """Whole images, not read yet. A source may offer them besides records, so that they need not be copied.

    table: int64 [n, 8] on the CPU, a row for each image with the columns of this module: its bytes' address in memory,
    or 0 and then the open descriptor and the offset in that file; how many bytes they are; their CRC-32C or UNCHECKED;
    their encoding (pixels of uint8, INTERLEAVED [h, w, c] or PLANAR [c, h, w], or JPEG); height and width in pixels.
    channels: 1 or 3, of all. keep: what owns the memory and the files. fit: whether every image of the source, not only
    these, has the source's shape.
    """

    table: Tensor
    channels: int
    keep: list[object] = field(default_factory=list)
    fit: bool = False

    def __len__(self) -> int:
        return len(self.table)

    @property
    def sizes(self) -> Tensor:
        """int64 [n, 2]: height and width of each image."""
        return self.table[:, HEIGHT:]

    @classmethod
    def of_pixels(cls, images: Tensor) -> Pictures:
        """Return the images of a uint8 tensor [n, c, h, w], in its own memory if that is dense, NCHW or NHWC."""
        n, channels, height, width = images.shape
        interleaved = images.is_contiguous(memory_format=torch.channels_last) and channels > 1
        images = images if interleaved else images.contiguous()
        bytes_each = channels * height * width
        table = torch.empty(n, 8, dtype=torch.int64)
        table[:, ADDRESS] = images.data_ptr() + bytes_each * torch.arange(n)
        rest = [0, 0, bytes_each, UNCHECKED, INTERLEAVED if interleaved else PLANAR, height, width]
        table[:, FILE:] = torch.tensor(rest)
        return cls(table, channels, [images], fit=True)

    @classmethod
    def of_files(cls, files: Iterable[bytes], channels: int) -> Pictures:
        """Return the images of JPEG and PNG files' bytes; of JPEG files that native code can decode, undecoded.

        Raises UsageError for a file that is damaged or of another format.
        """
        rows: list[list[int]] = []
        keep: list[object] = []
        for data in files:
            header = ops.plain_jpeg(data)
            if header is not None:
                rows.append([ops.address_of(data), 0, 0, len(data), UNCHECKED, JPEG, *header])
                keep.append(data)
                continue
            pixels = torch.from_numpy(decode_whole(data, channels))
            height, width = pixels.shape[:2]
            rows.append([pixels.data_ptr(), 0, 0, pixels.numel(), UNCHECKED, INTERLEAVED, height, width])
            keep.append(pixels)
        return cls(torch.tensor(rows, dtype=torch.int64).view(-1, 8), channels, keep)
