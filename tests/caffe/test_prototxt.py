"""Protobuf's text format: what Caffe's files hold is read, mistakes are told with their line."""

from __future__ import annotations

import pytest

from engine.plugins.caffe.prototxt import Mistake, Node, Text, parse, written
from engine.plugins.caffe.schema import Message


def tree(node: Node) -> list[tuple[str, object]]:
    """Return a message without its lines."""
    return [(f.name, tree(f.value) if isinstance(f.value, Node) else f.value) for f in node.fields]


def test_every_form_of_the_language_is_read():
    text = """
    name: "a net" # a comment { with braces
    layer { type: 'It\\'s' "joined" bottom: "x" }
    layer: < kernel: [1, 2] pool: MAX; scale: -1.5e-3 on: true, inner { } >
    """
    quoted = lambda value: Text(value, True)  # noqa: E731
    word = lambda value: Text(value, False)  # noqa: E731
    assert tree(parse(text)) == [
        ("name", quoted("a net")),
        ("layer", [("type", quoted("It'sjoined")), ("bottom", quoted("x"))]),
        (
            "layer",
            [
                ("kernel", word("1")), ("kernel", word("2")), ("pool", word("MAX")), ("scale", word("-1.5e-3")),
                ("on", word("true")), ("inner", []),
            ],
        ),
    ]  # fmt: skip


def test_what_is_written_on_a_line_is_read_alike():
    text = (
        'a: "quote \\" slash \\\\ dollar $ apostrophe \\\' newline \\n end" b { c: 1 c: FIVE d: <e: "\\303\\244 ü">} }'
    )
    once = written(parse(text.replace("} }", "}")))
    assert tree(parse(once)) == tree(parse(text.replace("} }", "}")))
    assert not {"'", "$", "\n", "\\\\", '\\"'} & set(once)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: \n\n }", "line 3: expected a value, not '}'"),
        ("a {\n b: 1", "line 2: expected the name of a field or '}', not the end"),
        ("a: 1\nb c", "line 2: expected ':' or '{' after 'b'"),
        ("a: 'open\n", 'line 1: "\'" cannot stand here'),
        ("a: [1 2]", "line 1: expected ',' or ']', not '2'"),
        ("\n\n: 1", "line 3: expected the name of a field, not ':'"),
        ("a { b: 1 >", "line 1: expected the name of a field or '}', not '>'"),
        ("\n" + "a {" * 40, "line 2: messages are nested more than 32 deep"),
    ],
)
def test_a_mistake_is_told_with_its_line(text, message):
    with pytest.raises(Mistake) as caught:
        parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool: MIN", "line 1: pool is 'MIN' instead of MAX or AVE or STOCHASTIC"),
        ("\nkernel_size: 3.5", "line 2: kernel_size is '3.5' instead of a whole number"),
        ("stride: 99999999999", "line 1: stride is '99999999999' instead of a whole number"),
        ("\nkernel_sise: 3", "line 2: pooling_param has no field 'kernel_sise'; did you mean 'kernel_size'?"),
        ("pad { }", "line 1: pad takes a value"),
    ],
)
def test_fields_are_checked_by_their_types(text, message):
    with pytest.raises(Mistake) as caught:
        Message("pooling_param", parse(text))
    assert str(caught.value) == message


def test_defaults_are_caffes():
    lrn = Message("lrn_param", parse("alpha: 1f"))
    assert [lrn.get(name) for name in ("local_size", "alpha", "beta", "norm_region", "k")] == [
        5, 1.0, 0.75, "ACROSS_CHANNELS", 1.0,
    ]  # fmt: skip
    assert Message("pooling_param", parse("pool: 1 global_pooling: 1")).get("pool") == "AVE"
