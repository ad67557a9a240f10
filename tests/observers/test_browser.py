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
from pathlib import Path
from queue import Queue

import pytest

from engine.plugins.observers import TensorBoard

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402  (after the check that it is there)

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 60  # most that anything may take on a busy machine; nothing waits this long when all is well

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")

# TensorBoard's page is a tree of shadow roots; this gathers elements or words from all of them.
WALK = """
const found = [];
(function walk(node) {
  if (node.nodeType === Node.TEXT_NODE) { if (%s) found.push(node.textContent.trim()); return; }
  if (node.tagName === 'STYLE' || node.tagName === 'SCRIPT') return;
  if (node.tagName && node.checkVisibility && !node.checkVisibility()) return;
  %s
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
})(document.body);
return found;
"""
WORDS = WALK % ("node.textContent.trim()", "")
IMAGES = WALK % ("false", "if (node.tagName === 'IMG' && node.src.includes('images')) found.push(node.naturalWidth);")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Return a function that starts TensorBoard on a folder and returns its address once it serves."""
    started: list[subprocess.Popen[str]] = []

    def start(logs: Path) -> str:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1", "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        started.append(server)
        lines: Queue[str] = Queue()
        threading.Thread(target=lambda: [lines.put(line) for line in server.stderr], daemon=True).start()
        seen = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", seen)):
            seen += lines.get(timeout=SECONDS)
        return found[0]

    yield start
    for server in started:
        server.terminate()
        server.wait(timeout=SECONDS)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Start Chromium with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        "--window-size=1440,1000", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
