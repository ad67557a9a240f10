"""Crops of 224 from photographs, from the store and from the folder, beside the usual DataLoader and FFCV."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from functools import partial
from pathlib import Path

import torch
from harness import Report, Side, interleave

from engine.loader import Loader

from . import Bench, Turn, classical, ours, show
from .photographs import Images, photographs

BATCH = 64
SHORTER_SIDE = 256
CLASSICAL = "DataLoader + Pillow"
STORE, FOLDER, FOLDED, CLIPPED = "engine, store", "engine, JPEG folder", "engine, store, folded", "engine, store"
FFCV = "FFCV, raw"


def prepared(bench: Bench) -> tuple[Images, Path]:
    """Return the folder of JPEG files and the store made of it, made when asked for the first time."""
    folder, store = bench.folder / "photographs", bench.folder / "store"
    if not folder.exists():
        images = photographs(folder, bench.pick(2, 6))
        pack(folder, store)
        (bench.folder / "images.txt").write_text(images.what)
        print(f"images: {images.what}; store: shorter side {SHORTER_SIDE}", flush=True)
    return Images(folder, (bench.folder / "images.txt").read_text()), store


def pack(folder: Path, store: Path) -> None:
    """Make the store as a user does; its test split is the training's."""
    with contextlib.redirect_stdout(io.StringIO()):
        ours.command(
            "pack", "data=folder", f"data.root={folder}", "data.size=224", f"out={store}",
            f"shorter_side={SHORTER_SIDE}", "splits=[train]",
        )  # fmt: skip
    (store / "test").symlink_to("train")


def crops(bench: Bench) -> None:
    """Measure crops, flipped and normalised, from the store and from the folder."""
    images, store = prepared(bench)
    few, many = turns(bench)
    loaders = {
        STORE: ours.loader([*ours.store_words(store), *ours.recipe()], BATCH),
        f"{STORE}, 1 thread": ours.loader([*ours.store_words(store, threads=1), *ours.recipe()], BATCH),
        f"{STORE}, data.check=false": ours.loader([*ours.store_words(store, check=False), *ours.recipe()], BATCH),
        f"{STORE}, bfloat16": ours.loader([*ours.store_words(store), *ours.recipe()], BATCH, torch.bfloat16),
        FOLDER: ours.loader([*ours.folder_words(images.root), *ours.recipe()], BATCH),
        f"{FOLDER}, 1 thread": ours.loader([*ours.folder_words(images.root, threads=1), *ours.recipe()], BATCH),
    }
    sides = {CLASSICAL: classical.side(classical.Files(images.root / "train", classical.recipe(False)), few)}
    sides |= {name: ours.side(ready, few if FOLDER in name else many) for name, ready in loaders.items()}
    times = interleave(sides, bench.turns(2, 9))
    show(bench.report, "crops of 224, flipped and normalised", times, [CLASSICAL])
    shares(bench.report, loaders)
    claim = partial(bench.report.claim, unit="x", at_least=True)
    claim("crops from the store over DataLoader", times.ratio(CLASSICAL, STORE).median, 12)
    claim("crops from the folder over DataLoader", times.ratio(CLASSICAL, FOLDER).median, 2.5)


def colours(bench: Bench) -> None:
    """Measure the same with colour jitter and lighting on all sides."""
    images, store = prepared(bench)
    few, many = turns(bench)
    loaders = {
        FOLDED: ours.loader([*ours.store_words(store), *ours.recipe("folded")], BATCH),
        CLIPPED: ours.loader([*ours.store_words(store), *ours.recipe("clipped")], BATCH),
        f"{FOLDED}, 1 thread": ours.loader([*ours.store_words(store, threads=1), *ours.recipe("folded")], BATCH),
        FOLDER: ours.loader([*ours.folder_words(images.root), *ours.recipe("clipped")], BATCH),
    }
    sides = {CLASSICAL: classical.side(classical.Files(images.root / "train", classical.recipe(True)), few)}
    sides |= {name: ours.side(ready, few if FOLDER in name else many) for name, ready in loaders.items()}
    times = interleave(sides, bench.turns(2, 9))
    show(bench.report, "crops of 224, flipped, jittered, lit and normalised", times, [CLASSICAL])
    shares(bench.report, loaders)
    speed_up = times.ratio(CLASSICAL, FOLDED).median
    bench.report.claim("crops with jitter and lighting over DataLoader", speed_up, 25, "x", at_least=True)


def ffcv(bench: Bench) -> None:
    """Measure the same crops beside FFCV's, where it is installed."""
    if not importlib.util.find_spec("ffcv"):
        print("no FFCV rows: it is not installed (docs/results/data.md says how it can be)")
        return
    from . import with_ffcv

    _, store = prepared(bench)
    _, many = turns(bench)
    beton = with_ffcv.write(store / "train", bench.folder / "photographs.beton")
    sides: dict[str, Side] = {
        FFCV: with_ffcv.side(beton, Turn(BATCH, many.skipped, many.counted // 3)),
        STORE: ours.side(ours.loader([*ours.store_words(store), *ours.recipe()], BATCH), many),
    }
    times = interleave(sides, bench.turns(2, 9))
    show(bench.report, "crops of 224, flipped and normalised, from the same stored pixels", times, [FFCV])
    bench.report.claim("crops from the store over FFCV raw", times.ratio(FFCV, STORE).median, 3, "x", at_least=True)


def turns(bench: Bench) -> tuple[Turn, Turn]:
    """Return the turns of slow and of fast sides."""
    return bench.pick(Turn(BATCH, 2, 3), Turn(BATCH, 4, 14)), bench.pick(Turn(BATCH, 8, 20), Turn(BATCH, 8, 120))


def shares(report: Report, loaders: dict[str, Loader]) -> None:
    """Print what the engine's threads spent their time on."""
    rows = []
    for name, ready in loaders.items():
        spent = ready.spent
        parts = (spent.read, spent.decode, spent.augment)
        rows.append([name, *(f"{100 * part / sum(parts):.1f}" for part in parts)])
    report.table("what the engine's threads spend their time on", ["side", "read %", "decode %", "transform %"], rows)
