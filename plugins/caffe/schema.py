"""What fields Caffe's messages have, and reading them from a parsed prototxt: types and names checked, defaults known.

Names, types and defaults are those of BVLC's caffe.proto. A line of ``MESSAGES`` is a field: its name, its type (with *
if it may be repeated) and its default. Types in capitals are words of a set, other unknown ones are messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import did_you_mean

from .prototxt import Field, Mistake, Node, Text

MESSAGES = {
    "net": """name str; input str*; input_shape shape*; input_dim int*; force_backward bool; state state;
        debug_info bool; layer any*; layers any*""",
    "shape": "dim int*",
    "data_batch": "batch_size int",
    "state": "phase PHASE TEST; level int 0; stage str*",
    "rule": "phase PHASE; min_level int; max_level int; stage str*; not_stage str*",
    "param": "name str; share_mode WORD; lr_mult float 1; decay_mult float 1",
    "layer": """name str; type str; bottom str*; top str*; phase PHASE; loss_weight float*; param param*;
        include rule*; exclude rule*; propagate_down bool*; transform_param transform""",
    "layers": """name str; type str; bottom str*; top str*; loss_weight float*; param str*; blob_share_mode WORD*;
        blobs_lr float*; weight_decay float*; include rule*; exclude rule*; transform_param transform""",
    "filler": """type str constant; value float 0; min float 0; max float 1; mean float 0; std float 1; sparse int -1;
        variance_norm NORM FAN_IN""",
    "transform": """scale float 1; mirror bool false; crop_size int 0; mean_file str; mean_value float*;
        force_color bool; force_gray bool""",
    "convolution_param": """num_output int; bias_term bool true; pad int*; kernel_size int*; stride int*; dilation int*;
        pad_h int; pad_w int; kernel_h int; kernel_w int; stride_h int; stride_w int; group int 1;
        weight_filler filler; bias_filler filler; engine WORD; axis int 1; force_nd_im2col bool""",
    "inner_product_param": """num_output int; bias_term bool true; weight_filler filler; bias_filler filler; axis int 1;
        transpose bool false""",
    "pooling_param": """pool POOL MAX; pad int*; pad_h int; pad_w int; kernel_size int*; kernel_h int; kernel_w int;
        stride int*; stride_h int; stride_w int; engine WORD; global_pooling bool false; round_mode ROUND CEIL""",
    "lrn_param": """local_size int 5; alpha float 1; beta float 0.75; norm_region REGION ACROSS_CHANNELS; k float 1;
        engine WORD""",
    "relu_param": "negative_slope float 0; engine WORD",
    "prelu_param": "filler filler; channel_shared bool false",
    "elu_param": "alpha float 1",
    "sigmoid_param": "engine WORD",
    "tanh_param": "engine WORD",
    "power_param": "power float 1; scale float 1; shift float 0",
    "dropout_param": "dropout_ratio float 0.5; scale_train bool",
    "concat_param": "axis int 1; concat_dim int 1",
    "slice_param": "axis int 1; slice_dim int 1; slice_point int*",
    "eltwise_param": "operation ELTWISE SUM; coeff float*; stable_prod_grad bool",
    "batch_norm_param": """use_global_stats bool; moving_average_fraction float 0.999; eps float 1e-5;
        scale_bias bool false; scale_filler filler; bias_filler filler; engine WORD""",
    "scale_param": "axis int 1; num_axes int 1; filler filler; bias_term bool false; bias_filler filler",
    "bias_param": "axis int 1; num_axes int 1; filler filler",
    "flatten_param": "axis int 1; end_axis int -1",
    "reshape_param": "shape shape; axis int 0; num_axes int -1",
    "softmax_param": "engine WORD; axis int 1",
    "crop_param": "axis int 2; offset int*",
    "permute_param": "order int*",
    "input_param": "shape shape*",
    "loss_param": "ignore_label int; normalization NORMALIZATION VALID; normalize bool",
    "hinge_loss_param": "norm WORD L1",
    "solver": """net str; net_param any; train_net str; test_net str*; train_net_param any; test_net_param any*;
        train_state state; test_state state*; test_iter int*; test_interval int 0; test_compute_loss bool;
        test_initialization bool; base_lr float; display int 0; average_loss int; max_iter int; iter_size int 1;
        lr_policy str; gamma float 0; power float 0; momentum float 0; weight_decay float 0;
        regularization_type str L2; stepsize int 0; stepvalue int*; clip_gradients float -1; snapshot int 0;
        snapshot_prefix str; snapshot_diff bool; snapshot_format WORD; solver_mode WORD GPU; device_id int;
        random_seed int -1; type str SGD; solver_type WORD; delta float 1e-8; momentum2 float 0.999;
        rms_decay float 0.99; debug_info bool; snapshot_after_train bool; layer_wise_reduce bool; weights str*""",
}
WORDS = {
    "PHASE": ("TRAIN", "TEST"),
    "NORM": ("FAN_IN", "FAN_OUT", "AVERAGE"),
    "POOL": ("MAX", "AVE", "STOCHASTIC"),
    "ROUND": ("CEIL", "FLOOR"),
    "REGION": ("ACROSS_CHANNELS", "WITHIN_CHANNEL"),
    "NORMALIZATION": ("FULL", "VALID", "BATCH_SIZE", "NONE"),
    "ELTWISE": ("PROD", "SUM", "MAX"),
}
WHOLE = 2**31 - 1  # no size or count of a network is larger
LARGEST = 3.4028234663852886e38  # of float32, which Caffe's numbers are


@dataclass(frozen=True)
class Kind:
    """A field's type. many: it may be repeated."""

    type: str
    many: bool
    default: str | None


def _kinds(text: str) -> dict[str, Kind]:
    kinds = {}
    for line in text.split(";"):
        name, kind, *default = line.split()
        kinds[name] = Kind(kind.rstrip("*"), kind.endswith("*"), default[0] if default else None)
    return kinds


SCHEMA = {name: _kinds(text) for name, text in MESSAGES.items()}


class Message:
    """A message's fields by name. Raises Mistake, on being made, for a field that the message does not have.

    open: fields that it does not have are left alone, as those of layers that are not computed.
    """

    def __init__(self, kind: str, node: Node, open: bool = False) -> None:
        self.kind, self.line = kind, node.line
        self._kinds, self._values = SCHEMA[kind], dict[str, list[Any]]()
        for each in node.fields:
            if each.name in self._kinds:
                self._values.setdefault(each.name, []).append(_read(each, self._kinds[each.name]))
            elif not open:
                hint = did_you_mean(each.name, self._kinds)
                raise Mistake(each.line, f"{called(kind)} has no field '{each.name[:40]}'{hint}")

    def has(self, name: str) -> bool:
        """Return whether a field is given."""
        return name in self._values

    def get(self, name: str) -> Any:
        """Return a field's value, the last that is given, or its default; None where it has none."""
        kind = self._kinds[name]
        if name in self._values:
            return self._values[name][-1]
        return None if kind.default is None else _plain(Text(kind.default, False), kind.type, self.line, name)

    def all(self, name: str) -> Sequence[Any]:
        """Return all values of a field that may be repeated."""
        return self._values.get(name, ())


EMPTY = Node(0)


def called(kind: str) -> str:
    """Return what a message is called in an error."""
    return {"net": "a network", "layers": "a layer", "layer": "a layer", "solver": "a solver"}.get(kind, kind)


def _read(each: Field, kind: Kind) -> Any:
    is_message = kind.type in SCHEMA or kind.type == "any"
    if is_message != isinstance(each.value, Node):
        expected = "a message in braces" if is_message else "a value"
        raise Mistake(each.line, f"{each.name} takes {expected}")
    if isinstance(each.value, Node):
        return each.value if kind.type == "any" else Message(kind.type, each.value)
    return _plain(each.value, kind.type, each.line, each.name)


def _plain(value: Text, kind: str, line: int, name: str) -> Any:
    """Return a value of a plain type. Raises Mistake for one of another."""
    text = value.value
    if kind == "str" or kind == "WORD":
        return text
    try:
        if kind == "int":
            return _whole(text)
        if kind == "float":
            return _number(text)
        if kind == "bool":
            return {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}[text]
        return WORDS[kind][int(text)] if text.isdecimal() else next(word for word in WORDS[kind] if word == text)
    except (ValueError, KeyError, IndexError, StopIteration):
        pass
    known = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    expected = known.get(kind) or " or ".join(WORDS[kind])
    raise Mistake(line, f"{name} is {text[:40]!r} instead of {expected}")


def _whole(text: str) -> int:
    value = int(text, 0) if text.lower().startswith(("0x", "-0x")) else int(text)
    if not -WHOLE <= value <= WHOLE:
        raise ValueError(text)
    return value


def _number(text: str) -> float:
    value = float(text.rstrip("fF") if text[-1:] in "fF" and "x" not in text else text)
    if not abs(value) <= LARGEST:
        raise ValueError(text)
    return value
