"""Published networks in their own formats, installed as plugins for a test, and their data as folders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from photographs import Photograph, listed


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that installs a module of this folder as a distribution of that one plugin."""

    def install(name: str) -> None:
        metadata = tmp_path / "site" / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[engine]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(tmp_path / "site")

    return install


@pytest.fixture(scope="session")
def sample(real_data: Callable[[str], Path]) -> list[Photograph]:
    """The photographs of the ImageNet sample."""
    return listed(real_data("imagenet-sample"))


class Heard:
    """What a network of the engine's is given and says, while it is listened to."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []

    def last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the images of the last batches, ``count`` in all, and what was said of them; then forget all."""
        images, said = [], []
        while sum(map(len, images)) < count:
            batch = self.batches.pop()
            images.insert(0, batch[0])
            said.insert(0, batch[1])
        self.batches.clear()
        assert sum(map(len, images)) == count
        return torch.cat(images), torch.cat(said)


@pytest.fixture
def heard() -> Iterator[Heard]:
    """Listen to every whole network, a Sequential that ends with a Flatten, wherever it is built."""
    heard = Heard()

    def listen(module: nn.Module, given: tuple[Tensor, ...], said: Tensor) -> None:
        if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.Flatten):
            heard.batches.append((given[0].detach().clone(), said.detach().clone()))

    handle = nn.modules.module.register_module_forward_hook(listen)
    yield heard
    handle.remove()
