"""What a person sees in TensorBoard: a real server on a real log folder, opened in headless Chromium.

The picture in the documentation is taken by the first test, from a real run:
``ENGINE_LOGS=runs ENGINE_SCREENSHOT=docs/images/tensorboard.png pytest tests/observers/test_browser.py -k charts``
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from engine.plugins.observers import TensorBoard

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402  (after the check that it is there)

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 60  # most that anything may take on a busy machine; nothing waits this long when all is well

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")

# TensorBoard's page is a tree of shadow roots; this walks through all that is visible in it.
WALK = """
const found = [];
(function walk(node) {
  if (['STYLE', 'SCRIPT'].includes(node.tagName) || (node.checkVisibility && !node.checkVisibility())) return;
  const text = node.nodeType === Node.TEXT_NODE ? node.textContent.trim() : '';
  %s
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
})(document.body);
return found;
"""
WORDS = WALK % "if (text) found.push(text);"
CURVES = WALK % "if (node.tagName === 'path' && node.classList.contains('line')) found.push(node.getAttribute('d'));"
WIDTHS = WALK % "if (node.tagName === 'IMG' && node.src.includes('/images/')) found.push(node.naturalWidth);"


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Return a function that starts TensorBoard on a folder and returns its address once it serves."""
    with ExitStack() as stack:

        def start(logs: Path) -> str:
            command = [
                sys.executable,
                "-m",
                "tensorboard.main",
                "--logdir",
                logs.name,
                "--host",
                "127.0.0.1",
                "--port=0",
            ]
            pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            server = stack.enter_context(subprocess.Popen(command, cwd=logs.parent, **pipes))
            lines: Queue[str] = Queue()
            reader = threading.Thread(target=lambda: [lines.put(line) for line in chain(server.stderr, [""])])
            reader.start()
            stack.callback(reader.join)
            stack.callback(server.terminate)  # the last callback is the first to be called
            seen = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+/", seen)):
                line = lines.get(timeout=SECONDS)
                assert line, f"TensorBoard ended: {seen}"
                seen += line
            return found[0]

        yield start


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Start Chromium with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        "--window-size=1500,850", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def address(make_run: Callable[..., Any], serve: Callable[[Path], str]) -> str:
    """Serve two finished runs that differ in an option, one of them with an option that the other leaves null."""
    small, large = make_run("runs/small", model__width=8), make_run("runs/large", model__width=16, run__clip=5.0)
    for run in (small, large):
        run.play(TensorBoard().build())
    return serve(small.out.parent)


def look(browser: webdriver.Chrome, script: str, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """Return what the script finds in the page, as soon as it is enough."""
    return WebDriverWait(browser, SECONDS, poll_frequency=0.1).until(
        lambda page: found if enough(found := page.execute_script(script)) else None, f"never enough of {script[-90:]}"
    )


def test_scalar_charts(browser, address, serve):
    if logs := os.environ.get("ENGINE_LOGS"):
        address = serve(Path(logs).resolve())
    tags = ["train/loss", "train/accuracy", "test/loss", "test/accuracy"]
    filtered = "%5E(train%7Ctest%7Cspeed)%2F(loss%7Caccuracy%7Clr%7Cimages)"  # ^(train|test|speed)/(loss|accuracy...)
    browser.get(f"{address}#scalars&_smoothingWeight=0&tagFilter={filtered}")
    look(browser, WORDS, set(tags).issubset)
    look(browser, CURVES, lambda curves: sum(len(curve) > 20 for curve in curves) >= 2 * len(tags))  # for both runs
    if picture := os.environ.get("ENGINE_SCREENSHOT"):
        assert browser.save_screenshot(picture)


def test_text_shows_configuration_and_overrides(browser, address):
    browser.get(f"{address}#text")
    expected = {
        "run/configuration/text_summary",
        "model:\n  width: 8",
        "model.width=8",
        "layer   kernel\nconv1   native",
    }
    look(browser, WORDS, expected.issubset)


def test_images_show_the_first_batch(browser, address):
    browser.get(f"{address}#images")
    look(browser, WORDS, {"train/first_batch", "small", "large"}.issubset)
    assert look(browser, WIDTHS, lambda widths: len(widths) == 2 and all(widths)) == [65, 65]  # pixels, once loaded


def test_hparams_compare_the_runs(browser, address):
    browser.get(f"{address}#hparams")
    words = look(browser, WORDS, lambda words: {"Trial ID", "small", "large", "test/accuracy"}.issubset(words))
    table = words[words.index("Trial ID") :]
    assert table[2] == "model.width"  # what differs comes first, after a column of check boxes
    assert {"run.clip", "augment.flip.chance"} <= set(words)  # also what only one of them has
    rows = table[table.index("large") : table.index("small")], table[table.index("small") :]
    for row, width in zip(rows, ("16.000", "8.0000"), strict=True):
        assert {width, "flip", "0.84000", "0.87000"} <= set(row)  # the last and the best test accuracy
