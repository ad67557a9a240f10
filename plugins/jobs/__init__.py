"""Built-in jobs: train, evaluate, plugins, explain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from engine import Job, hookimpl, option

if TYPE_CHECKING:
    from engine.registry import Store
    from engine.session import Session


@dataclass
class Train(Job):
    """Train a model and save checkpoints."""

    keeps_output: ClassVar[bool] = True

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .train import train

        return train


@dataclass
class Evaluate(Job):
    """Measure a trained model on the test split."""

    checkpoint: str = option("", "run or checkpoint folder, or a state dict in a .pt, .pth, .th or .safetensors file")

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .evaluate import evaluate

        return evaluate


@dataclass
class Plugins(Job):
    """List the installed plugins, what each supplies, and which of them are broken."""

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .listing import plugins

        return plugins


@dataclass
class Explain(Job):
    """Print the composed configuration with the origin of every value."""

    def build(self) -> Callable[[Session], None]:
        """Return the job."""
        from .explain import explain

        return explain


@hookimpl
def engine_options(store: Store) -> None:
    """Register the built-in jobs."""
    store.add("job", "train", Train)
    store.add("job", "evaluate", Evaluate)
    store.add("job", "plugins", Plugins)
    store.add("job", "explain", Explain)
