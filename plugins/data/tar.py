"""Where the members of a tar archive are, without reading content (format: POSIX pax, ustar, GNU's long names)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine import UsageError

BLOCK = 512
TAIL = 64 << 10  # bytes read at a time behind the end
REGULAR = (b"0", b"\0", b"7")
PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK = b"x", b"g", b"L", b"K"
SPARSE, HARD_LINK = b"S", b"1"
OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
DIGITS = 20  # of a decimal number, at most
REPAIR = "fetch or write it again"

Reader = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive: its name, and where its content is.

    link: of a hard link, the name that the content has; such a member has none of its own.
    """

    name: str
    offset: int
    length: int
    link: str | None = None


def members(read: Reader, length: int, archive: str) -> Iterator[Member]:
    """Yield the files and hard links of an archive of ``length`` bytes; ``read(offset, count)`` gives its bytes.

    Raises UsageError naming the archive where it is no tar archive, compressed, truncated (it must end with the empty
    block that marks the end), followed by another one, or its headers are damaged.
    """
    place, name, link, size = 0, "", "", -1  # name, link and size: what a header for the next member says
    while place < length:
        header = read(place, min(BLOCK, length - place))
        if len(header) == BLOCK and not any(header) and place:
            _require_end(read, place, length, archive)
            return
        _check(header, place, archive)
        kind, own = header[156:157], _number(header[124:136], archive, place)
        content, whole = place + BLOCK, own if size < 0 else size
        extended = kind in (PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK)
        place = content + -(-(own if extended else whole) // BLOCK) * BLOCK
        if content + (own if extended else whole) > length:
            member = name or _name(header)
            raise UsageError(f"{archive} is truncated: it ends at byte {length}, within {member}; {REPAIR}")
        if kind == GNU_NAME:
            name = _text(read(content, own).rstrip(b"\0"))
        elif kind == GNU_LINK:
            link = _text(read(content, own).rstrip(b"\0"))
        elif kind == PAX:
            facts = _pax(read(content, own), archive, content)
            name = _text(facts["path"]) if "path" in facts else name
            link = _text(facts["linkpath"]) if "linkpath" in facts else link
            size = _decimal(facts["size"], archive, content) if "size" in facts else size
            if any(key.startswith("GNU.sparse") for key in facts):
                raise UsageError(
                    f"{archive}: {name or 'a member'} is a sparse file; write the archive without --sparse"
                )
        elif not extended:
            if kind == SPARSE:
                raise UsageError(f"{archive}: {_name(header)} is a sparse file; write the archive without --sparse")
            if kind in REGULAR:
                yield Member(name or _name(header), content, whole)
            elif kind == HARD_LINK:
                yield Member(name or _name(header), content, 0, link or _text(header[157:257].split(b"\0", 1)[0]))
            name, link, size = "", "", -1
    raise UsageError(f"{archive} is truncated: it has no mark of its end; {REPAIR}")


def _require_end(read: Reader, place: int, length: int, archive: str) -> None:
    for start in range(place, length, TAIL):
        if any(read(start, min(TAIL, length - start))):
            raise UsageError(f"{archive} is damaged, or two archives in one: it goes on after its end; {REPAIR}")


def _check(header: bytes, place: int, archive: str) -> None:
    """Raise UsageError unless the header's sum is the one that is written in it."""
    if len(header) == BLOCK and any(header):
        try:
            written = int(header[148:156].strip(b" \0") or b"0", 8)
        except ValueError:
            written = -1
        if written == sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return
    if place == 0:
        packed = header.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
        kind = (
            "is compressed, which leaves no random access: unpack it first"
            if packed
            else f"is no tar archive; {REPAIR}"
        )
        raise UsageError(f"{archive} {kind}")
    raise UsageError(f"{archive} is damaged: its bytes at {place} are no header of a tar archive; {REPAIR}")


def _number(octal: bytes, archive: str, place: int) -> int:
    if octal[0] == 0x80:  # GNU's form for 8 GiB and more; one that begins with 0xff is negative
        return int.from_bytes(octal[1:], "big")
    found = OCTAL.fullmatch(octal)
    if found is None:
        raise UsageError(f"{archive} is damaged: its header at {place} has no size; {REPAIR}")
    return int(found[1] or b"0", 8)


def _decimal(digits: bytes, archive: str, place: int) -> int:
    if not digits.isdigit() or len(digits) > DIGITS:
        raise UsageError(f"{archive} is damaged: its extended header at {place} has no size; {REPAIR}")
    return int(digits)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:262] == b"ustar" and header[262:263] != b" ":
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _pax(data: bytes, archive: str, place: int) -> dict[str, bytes]:
    """Return the keywords of an extended header: records ``LENGTH KEY=VALUE`` and a line feed."""
    facts: dict[str, bytes] = {}
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        count = int(digits) if digits.isdigit() and len(digits) <= DIGITS else 0
        key, equals, value = data[len(digits) + 1 : count - 1].partition(b"=")
        if not equals or count > len(data):
            raise UsageError(f"{archive} is damaged: its extended header at {place} cannot be read; {REPAIR}")
        facts[key.decode("utf-8", "replace")] = value
        data = data[count:]
    return facts
