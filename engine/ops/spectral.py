"""Convolution as products of spectra of whole images, by ``torch.fft``: for filters that no tile serves well.

Mathieu, Henaff and LeCun, "Fast training of convolutional networks through FFTs", ICLR 2014. Images, filters and the
gradient of the output are laid on a circle each way, just so long that what wraps round falls on zeros. There, with X,
W and G their spectra,

    output = X conj(W), summed over channels      gradient of the images = G W, summed over filters
    gradient of the weight = conj(G) X, summed over the batch

at each frequency: batches of complex matrix products. Groups of one channel have numbers in the matrices' place, and
are multiplied as they lie.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from engine.kernels import ConvSpec
from engine.ops import spectral_plan
from engine.ops.algorithm import SIZES, size_of
from engine.ops.spectral_plan import Placement, Plan, plan_of

KEPT = 1 << 28  # bytes: the largest spectra of a weight that are kept for a whole evaluation


class SpectralConvolution:
    """Convolution by torch's Fourier transforms: float32 and float64, on any device, results in NHWC order.

    A stride costs as much as none: all is computed, and some is kept. ``workspace`` is what a call needs at most: it
    works in parts that stay below 1 GiB. All is computed in the full precision of its type, whatever the settings.
    """

    def refuses(self, spec: ConvSpec, direction: str) -> str | None:
        """Return why a direction of ``spec`` cannot be computed, or None if it can."""
        if spec.dtype not in SIZES:
            return f"it computes in float32 and float64, not {str(spec.dtype).removeprefix('torch.')}"
        if not _meets(spec):
            # The rounding of what is dropped would show where there is nothing else.
            return "no tap of the filter ever falls on the image"
        if self.workspace(spec, direction) > spectral_plan.LIMIT:
            return "its spectra would need more than 1 GiB"
        return None

    def workspace(self, spec: ConvSpec, direction: str, prepared: bool = False) -> int:
        """Return the bytes of temporary memory that a call needs at most."""
        return plan_of(spec, direction)[1].peak(prepared) * 2 * size_of(spec)

    def waste(self, spec: ConvSpec) -> float:
        """Return the multiplications done for nothing, per useful one: those of the places that a stride skips."""
        return float(spec.stride[0] * spec.stride[1] - 1)

    def prepare(self, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the weight's spectra for forward calls of ``spec``; the weight itself where they take too much memory.

        Spectra of which a call reads only a part at a time are not worth keeping either.
        """
        plan, part = plan_of(spec, "forward")
        count = spec.weight_shape[0] * spec.weight_shape[1] * plan.frequencies
        if count * 2 * size_of(spec) > KEPT or plan != part:
            return weight
        _check(weight, spec.weight_shape, spec)
        return _spectra(_grouped_weight(weight, spec), _taps(spec), plan, conjugate=True)

    @torch.no_grad()
    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
        """Return the convolution plus bias, [spec.output_shape]; weight: as it is, or what ``prepare`` returned."""
        _check(images, spec.input_shape, spec)
        prepared = weight if weight.is_complex() else None
        if prepared is None:
            _check(weight, spec.weight_shape, spec, images.device)
        else:
            _check_prepared(prepared, spec, images.device)
        right = None if prepared is not None else _grouped_weight(weight, spec)
        out = _empty(spec.output_shape, images)
        if bias is not None:
            bias = bias.view(spec.groups, 1, -1, 1, 1)
        _multiply(
            (_grouped(images, spec), right), (_images(spec), _taps(spec)), (_grouped(out, spec), _results(spec)),
            plan_of(spec, "forward"), conjugate=1, bias=bias, prepared=prepared,
        )  # fmt: skip
        return out

    @torch.no_grad()
    def backward_input(self, gradient: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the images, [spec.input_shape]."""
        _check(gradient, spec.output_shape, spec)
        _check(weight, spec.weight_shape, spec, gradient.device)
        out = _empty(spec.input_shape, gradient)
        _multiply(
            (_grouped(gradient, spec), _grouped_weight(weight, spec).transpose(1, 2)), (_results(spec), _taps(spec)),
            (_grouped(out, spec), _images(spec)), plan_of(spec, "backward_input"),
        )  # fmt: skip
        return out

    @torch.no_grad()
    def backward_weight(self, gradient: Tensor, images: Tensor, spec: ConvSpec) -> Tensor:
        """Return the gradient with respect to the weight, [spec.weight_shape]."""
        _check(gradient, spec.output_shape, spec)
        _check(images, spec.input_shape, spec, gradient.device)
        out = _empty(spec.weight_shape, gradient)
        _multiply(
            (_grouped(gradient, spec).transpose(1, 2), _grouped(images, spec).transpose(1, 2)),
            (_results(spec), _images(spec)), (_grouped_weight(out, spec), _taps(spec)),
            plan_of(spec, "backward_weight"), conjugate=0,
        )  # fmt: skip
        return out


def _multiply(
    factors: tuple[Tensor, Tensor | None],
    placements: tuple[Placement, Placement],
    result: tuple[Tensor, Placement],
    plans: tuple[Plan, Plan],
    conjugate: int | None = None,
    bias: Tensor | None = None,
    prepared: Tensor | None = None,
) -> None:
    """Write the product of two arrays, [groups, rows, sums, ...] and [groups, columns, sums, ...], part by part.

    result: [groups, rows, columns, ...]. placements, and that beside the result, say where elements lie on the circles;
    conjugate: which factor's spectra are conjugated; bias: added, [groups, 1, columns, 1, 1]; prepared: the spectra of
    the second factor, which is then None, for a plan of one part.
    """
    (left, right), (out, placement), (plan, part) = factors, result, plans
    where = (..., *placement.places(out.shape[3:]))
    with _full_precision if out.is_cuda else nullcontext():
        for groups, rows, columns in product(
            _ranges(plan.groups, part.groups), _ranges(plan.rows, part.rows), _ranges(plan.columns, part.columns)
        ):
            total: Tensor | None = None
            for sums in _ranges(plan.sums, part.sums):
                first = _spectra(left[groups, rows, sums], placements[0], plan, conjugate == 0)
                if right is None:
                    assert prepared is not None
                    second = prepared
                else:
                    second = _spectra(right[groups, columns, sums], placements[1], plan, conjugate == 1)
                found = first @ second.mT if plan.matrices else (first * second).sum(2, keepdim=True)
                total = found if total is None else total.add_(found)
                del first, second, found
            assert total is not None  # there is something to sum
            if plan.matrices:
                total = total.movedim(0, 3).unflatten(3, (plan.circles[0], -1))
            values = torch.fft.irfft2(total, s=plan.circles)[where]
            out[groups, rows, columns] = values if bias is None else values + bias[groups, :, columns]


def _spectra(array: Tensor, placement: Placement, plan: Plan, conjugate: bool = False) -> Tensor:
    """Return the spectra of an array, [groups, rows, sums, height, width], laid on the plan's circles.

    As matrices, [frequency, groups, rows, sums], or where all products are of numbers as they come.
    """
    circles = array.new_zeros(*array.shape[:3], *plan.circles)
    circles[(..., *placement.places(array.shape[3:]))] = array
    spectra = torch.fft.rfft2(circles)
    del circles
    if conjugate:
        spectra = spectra.conj().resolve_conj()
    return spectra.flatten(3).movedim(3, 0).contiguous() if plan.matrices else spectra


def _ranges(whole: int, part: int) -> Iterator[slice]:
    """Yield the slices that cut ``whole`` into parts."""
    return (slice(first, min(first + part, whole)) for first in range(0, whole, part))


class _FullPrecision:
    """While any thread is within ``with``, complex matrices on GPUs are multiplied without TF32.

    The setting is the process's, not a thread's: the first one in remembers it, the last one out puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.backends.cuda.matmul.fp32_precision
                if self._before == "tf32":
                    # Not by ``fp32_precision``: that alone leaves torch's older setting behind, and whoever reads that
                    # while the two differ gets an error.
                    torch.set_float32_matmul_precision("highest")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._before == "tf32":
                torch.set_float32_matmul_precision("high")


_full_precision = _FullPrecision()


def _images(spec: ConvSpec) -> Placement:
    """Behind the padding before them; that behind them is the same one, round the circle."""
    return Placement(spec.padding)


def _taps(spec: ConvSpec) -> Placement:
    return Placement((0, 0), spec.dilation)


def _results(spec: ConvSpec) -> Placement:
    return Placement((0, 0), spec.stride)


def _grouped(array: Tensor, spec: ConvSpec) -> Tensor:
    """Return a view of images or results, [groups, batch, channels of a group, height, width]."""
    return array.unflatten(1, (spec.groups, -1)).transpose(0, 1)


def _grouped_weight(weight: Tensor, spec: ConvSpec) -> Tensor:
    """Return a view of the weight, [groups, filters of a group, channels of a group, height, width]."""
    return weight.unflatten(0, (spec.groups, -1))


@lru_cache(maxsize=4096)
def _meets(spec: ConvSpec) -> bool:
    """Return whether any tap of the filter falls on the image anywhere, along both axes."""
    axes = zip(
        spec.input_shape[2:], spec.output_shape[2:], spec.kernel, spec.stride, spec.padding, spec.dilation, strict=True
    )
    return all(
        # The first tap that is not before the image, of each result.
        any(0 <= (tap := max(0, -(-(pad - y * step) // gap))) < kernel and y * step - pad + tap * gap < size
            for y in range(out))
        for size, out, kernel, step, pad, gap in axes
    )  # fmt: skip


def _empty(shape: tuple[int, int, int, int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _check(
    tensor: Tensor, shape: tuple[int, int, int, int], spec: ConvSpec, device: torch.device | None = None
) -> None:
    """Raise ValueError if a tensor is not what the spec says, or not on ``device``."""
    if tensor.shape != shape or tensor.dtype != spec.dtype or (device is not None and tensor.device != device):
        raise ValueError(
            f"convolution: a tensor must be {spec.dtype} {list(shape)}{f' on {device}' if device else ''}, not "
            f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        )


def _check_prepared(spectra: Tensor, spec: ConvSpec, device: torch.device) -> None:
    """Raise ValueError unless spectra are such as ``prepare`` makes for the spec."""
    plan, _ = plan_of(spec, "forward")
    half = (plan.circles[0], plan.circles[1] // 2 + 1)
    own = (plan.groups, plan.columns, plan.sums)
    shape = (plan.frequencies, *own) if plan.matrices else (*own, *half)
    if spectra.shape != shape or spectra.dtype != spec.dtype.to_complex() or spectra.device != device:
        raise ValueError("convolution: the weight was prepared for another shape, type or device")
