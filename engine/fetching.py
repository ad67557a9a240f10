"""Files by URL: downloaded once into the user's cache, whole and verified, or not at all."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import Request, urlopen

from engine.errors import UsageError
from engine.manifest import file_checksum

SCHEMES = ("http", "https", "file")
CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
SUM = re.compile(r"[0-9a-f]{64}")


def is_url(text: str) -> bool:
    """Return whether a text is a URL of the kinds that ``fetch`` takes, or was to be one."""
    return text.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def cache_folder() -> Path:
    """Return where downloads are kept: below $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "conv-engine" / "downloads"


def fetch(url: str, sha256: str = "", tell: Callable[[str], None] = print, option: str = "sha256") -> Path:
    """Return a file with what ``url`` (http, https or file) holds, of which ``sha256`` is the checksum.

    It is kept under its checksum, and looked for there first; file:// is read where it is. ``tell`` hears how a
    download goes on. Of several processes that ask at once, one downloads. Without a checksum only https is trusted;
    every process downloads, one after the other, to the same place, where it is looked for once the checksum, which
    ``tell`` hears, is given. Nothing is kept of a download that fails. Raises UsageError in one line for an address
    that is none, no network, another checksum (named as ``option``), or a cache that cannot be written.
    """
    expected = sha256.lower()
    if expected and not SUM.fullmatch(expected):
        raise UsageError(f"{option}={sha256}: a SHA-256 has 64 hexadecimal digits, as sha256sum prints it")
    parts = _parts(url)
    if parts.scheme == "file":
        return verified(Path(unquote(parts.path)), expected, option)
    if parts.scheme == "http" and not expected:
        raise UsageError(f"{url}: over http anybody may change the file on its way; give {option}=..., or use https")
    name = Path(unquote(parts.path)).name or "download"
    folder = cache_folder()
    try:
        with _locked(folder, expected or "unverified"):
            kept = folder / expected / name if expected else None
            if kept and kept.is_file() and file_checksum(kept) == expected:
                return kept
            return _download(url, folder, name, expected, tell, option)
    except HTTPError as error:
        raise UsageError(f"{url}: the server answers {error.code} {error.reason}; check the address") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise UsageError(f"{url} cannot be downloaded ({_reason(error)}); try again, or give a local file") from error
    except OSError as error:
        raise UsageError(f"{folder} cannot keep {name} ({_reason(error)}); set XDG_CACHE_HOME elsewhere") from error


def _parts(url: str) -> SplitResult:
    """Return a URL in its parts. Raises UsageError for one that has no host, or signs that a URL has to escape."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  looked at, for it may be no number
    except ValueError as error:
        raise UsageError(f"{url} is no address ({error}); check it") from error
    if parts.scheme != "file":
        if not parts.hostname:
            raise UsageError(f"{url} is no address (it names no host); check it")
        if not url.isascii() or re.search(r"[\x00-\x20\x7f]", url):
            escaped = quote(url, safe="%/:?#[]@!$&'()*+,;=~")
            raise UsageError(f"{url} has signs that an address has to escape: give {escaped}")
    return parts


def verified(path: Path, sha256: str, option: str = "sha256") -> Path:
    """Return ``path`` if its checksum is ``sha256``, or none is given. Raises UsageError otherwise."""
    if sha256 and not path.is_file():
        raise UsageError(f"{path} is no file, so it has no {option}; give the path of a file, or no {option}")
    if sha256 and (found := file_checksum(path)) != sha256.lower():
        raise UsageError(f"{path} has the SHA-256 {found} instead of {sha256.lower()}; get the right file, or {option}")
    return path


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Within ``with``, no other process of this machine is in it for the same name."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url: str, folder: Path, name: str, expected: str, tell: Callable[[str], None], option: str) -> Path:
    partial = folder / f".partial-{os.getpid()}-{name}"
    try:
        with urlopen(Request(url, headers={"User-Agent": "conv-engine"}), timeout=TIMEOUT) as answer:
            if not expected and urlsplit(answer.url).scheme != "https":
                raise UsageError(f"{url} leads to {answer.url}, which is not https; give {option}=...")
            with partial.open("wb") as file:
                _copy(answer, file, url, tell)
                file.flush()
                os.fsync(file.fileno())
        found = file_checksum(partial)
        if expected and found != expected:
            raise UsageError(f"{url} has the SHA-256 {found} instead of {expected}; nothing was kept: check both")
        if not expected:
            tell(f"{url}: to keep it, and to be sure of it the next time, give {option}={found}")
        (folder / found).mkdir(exist_ok=True)
        partial.replace(folder / found / name)
    finally:
        partial.unlink(missing_ok=True)
    return folder / found / name


def _copy(answer: Any, file: IO[bytes], url: str, tell: Callable[[str], None]) -> None:
    """Copy an answer's body, and tell every tenth of it."""
    length = int(answer.headers.get("Content-Length") or 0)
    whole = f" of {_size(length)}" if length else ""
    tell(f"downloading {url}{f', {_size(length)}' if length else ''}")
    done = told = 0
    while data := answer.read(CHUNK):
        file.write(data)
        done += len(data)
        if done < length and 10 * (done - told) >= length:
            tell(f"downloaded {_size(done)}{whole}")
            told = done
    if done < length:
        raise ConnectionError(f"it broke off after {_size(done)}{whole}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return " ".join(str(reason).split()) or type(error).__name__
