"""Protobuf's text format, as Caffe's .prototxt files are written: a tree of fields, each with its line.

The whole of the language that Caffe's files use: comments, quoted strings with escapes, numbers, words (enumerations,
true and false), messages with or without a colon, in braces or angle brackets, lists in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine import UsageError

DEEPEST = 32  # messages within messages; Caffe's own have five
TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f\v]+|\#[^\n]*)|(?P<line>\n)"""
    r"""|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<word>[-+]?[A-Za-z0-9_.](?:[A-Za-z0-9_.]|(?<=[eE])[-+])*)"""
    r"""|(?P<sign>[{}<>\[\]:,;])"""
)
ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
PLAIN = re.compile(r"[A-Za-z0-9 _./+:@=-]*")
CLOSING = {"{": "}", "<": ">"}


@dataclass(frozen=True)
class Text:
    """A quoted string or a bare word, as it was written."""

    value: str
    quoted: bool


@dataclass(frozen=True)
class Field:
    """A field of a message."""

    name: str
    value: Text | Node
    line: int


@dataclass
class Node:
    """A message: its fields in their order, and the line that it begins in."""

    line: int
    fields: list[Field] = field(default_factory=list)

    def all(self, name: str) -> Iterator[Field]:
        """Yield the fields of a name."""
        return (each for each in self.fields if each.name == name)


@dataclass(frozen=True)
class Token:
    """A piece of the text: a string, word or sign, or the end."""

    kind: str
    text: str
    line: int


class Mistake(ValueError):
    """What is wrong with a text; begins with the line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")


def read(path: Path) -> str:
    """Return a file's text. Raises UsageError naming one that cannot be read, or is no text."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give a prototxt file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path} cannot be read ({reason}): give a prototxt file") from error
    if b"\0" in content:
        raise UsageError(f"{path} is no text: give a prototxt file")
    return content.decode("utf-8", "replace")


def parse(text: str) -> Node:
    """Return the message that a text is. Raises Mistake, which names the line."""
    tokens = list(_tokens(text))
    root, place = _message(tokens, 0, "", 0, 1)
    assert tokens[place].kind == "end"
    return root


def _tokens(text: str) -> Iterator[Token]:
    place, line = 0, 1
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise Mistake(line, f"{_shown(text[place])} cannot stand here")
        place = match.end()
        if match.lastgroup == "line":
            line += 1
        elif match.lastgroup != "space":
            yield Token(str(match.lastgroup), match[0], line)
    yield Token("end", "the end", line)


def _message(tokens: list[Token], place: int, closing: str, depth: int, line: int) -> tuple[Node, int]:
    """Return the message whose first field is at ``place``, and the place of what ends it."""
    node = Node(line)
    while True:
        token = tokens[place]
        if (token.text == closing and token.kind == "sign") or (not closing and token.kind == "end"):
            return node, place
        if token.text in (",", ";") and token.kind == "sign" and node.fields:
            place += 1
            continue
        if token.kind != "word":
            expected = f"the name of a field or '{closing}'" if closing else "the name of a field"
            raise Mistake(token.line, f"expected {expected}, not {_shown(token.text)}")
        place = _field(tokens, place, node, depth)


def _field(tokens: list[Token], place: int, node: Node, depth: int) -> int:
    """Add to a message the field at ``place``, which is a word; return the place behind it."""
    name, place = tokens[place], place + 1
    colon = tokens[place].text == ":" and tokens[place].kind == "sign"
    place += colon
    if not colon and tokens[place].text not in CLOSING:
        raise Mistake(tokens[place].line, f"expected ':' or '{{' after {_shown(name.text)}")
    if tokens[place].text == "[" and tokens[place].kind == "sign":
        place += 1
        while tokens[place].text != "]" or tokens[place].kind != "sign":
            value, place = _value(tokens, place, depth)
            node.fields.append(Field(name.text, value, name.line))
            if tokens[place].text == "," and tokens[place].kind == "sign":
                place += 1
            elif tokens[place].text != "]":
                raise Mistake(tokens[place].line, f"expected ',' or ']', not {_shown(tokens[place].text)}")
        return place + 1
    value, place = _value(tokens, place, depth)
    node.fields.append(Field(name.text, value, name.line))
    return place


def _value(tokens: list[Token], place: int, depth: int) -> tuple[Text | Node, int]:
    token = tokens[place]
    if token.kind == "word":
        return Text(token.text, False), place + 1
    if token.kind == "string":
        parts = []
        while tokens[place].kind == "string":  # neighbours are one string, as in C
            parts.append(_unescaped(tokens[place].text[1:-1]))
            place += 1
        return Text("".join(parts), True), place
    if token.kind == "sign" and token.text in CLOSING:
        if depth == DEEPEST:
            raise Mistake(token.line, f"messages are nested more than {DEEPEST} deep")
        node, place = _message(tokens, place + 1, CLOSING[token.text], depth + 1, token.line)
        return node, place + 1
    raise Mistake(token.line, f"expected a value, not {_shown(token.text)}")


def _unescaped(text: str) -> str:
    def meaning(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] == "x" and len(code) > 1:
            return chr(int(code[1:], 16))
        return chr(int(code, 8)) if code[0] in "01234567" else ESCAPES.get(code, code)

    return ESCAPE.sub(meaning, text)


def _shown(text: str) -> str:
    """Return a piece of the text for a message: short, and in printable signs."""
    return repr(text if len(text) <= 30 else f"{text[:30]}...") if text != "the end" else text


def written(node: Node) -> str:
    """Return a message as text on one line, without comments, that ``parse`` reads alike but for lines.

    It holds neither single quotes, backslashes before quotes nor dollars, so it can be quoted in an override.
    """
    return " ".join(_written(each) for each in node.fields)


def _written(each: Field) -> str:
    if isinstance(each.value, Node):
        return f"{each.name}{{{written(each.value)}}}"
    if not each.value.quoted:
        return f"{each.name}:{each.value.value}"
    return f'{each.name}:"{"".join(map(_escaped, each.value.value))}"'


def _escaped(sign: str) -> str:
    if PLAIN.fullmatch(sign) or ord(sign) > 255:
        return sign
    return f"\\{ord(sign):03o}"
