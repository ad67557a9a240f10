"""Strong scaling of real training: two processes with one thread each beside one process with two threads."""

from __future__ import annotations

import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import Report, Spread

ONE, TWO = "1 process, 2 threads", "2 processes, 1 thread each"
STRATEGIES = {
    ONE: (["parallel=single"], "2"),
    TWO: (["parallel=data", "parallel.processes=2", "parallel.threads=1"], "1"),
}
MODELS = ("resnet20", "cnn")
IMAGES = 5000
TRAINING = ["run.batch=128", "run.evaluate_every=never", "save.every=never", "observe=[csv]", "augment=[]"]


def images_per_second(words: list[str], threads: str, data: Path, steps: int) -> float:
    """Train once, by the command line; return the median rate of the intervals after the first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "engine", "train", *words, *TRAINING, "data=cifar10", f"data.root={data}",
                   f"run.steps={steps}", "run.log_every=10", f"out={folder}/run"]  # fmt: skip
        variables = os.environ | {"OMP_NUM_THREADS": threads}
        subprocess.run(command, check=True, env=variables, capture_output=True, text=True)
        [path] = Path(folder).rglob("*.csv")
        with path.open() as file:
            rates = [float(row["speed/images_per_second"]) for row in csv.DictReader(file)
                     if row.get("speed/images_per_second")]  # fmt: skip
    return statistics.median(rates[1:])


def write_noise(folder: Path) -> None:
    """Write images of noise in CIFAR-10's format: their number and size are what matters here."""
    generator = np.random.default_rng(0)
    for name, count in (("data_batch_1.bin", IMAGES), ("test_batch.bin", 100)):
        records = generator.integers(0, 256, (count, 1 + 3 * 32 * 32), np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)


def scaling(report: Report, rounds: int, steps: int) -> None:
    """Add the comparison to the report; rounds of whole trainings, in turns."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_noise(data)
        for model in MODELS:
            rates: dict[str, list[float]] = {side: [] for side in STRATEGIES}
            for turn in range(rounds):
                for side in random.Random(turn).sample(list(STRATEGIES), len(STRATEGIES)):
                    chosen, threads = STRATEGIES[side]
                    rates[side].append(images_per_second([*chosen, f"model={model}"], threads, data, steps))
            ratio = Spread.of([two / one for one, two in zip(rates[ONE], rates[TWO], strict=True)])
            rows.append([model, *(Spread.of(rates[side]).text(digits=0) for side in STRATEGIES), ratio.text(digits=2)])
            report.claim(f"{model}: 2 processes over 2 threads", ratio.median, 0.95, "x", at_least=True)
    report.table("images/s of training on two cores, batch 128 of 3x32x32", ["model", *STRATEGIES, "ratio"], rows)
