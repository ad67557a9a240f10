"""Checks a convolution kernel against float64 arithmetic, in its three directions and through the engine's ops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.convolutions import supplied
from engine.interfaces import DIRECTIONS, ConvKernel, ConvSpec, KernelChooser
from engine.ops import NATIVE, register
from engine.options import Kernels
from engine.testing.network import check_network, relative_error
from engine.testing.promises import Promises

SPECS = (
    ConvSpec(2, 3, 8, 8, 4, (3, 3)),
    ConvSpec(2, 3, 8, 8, 4, (3, 3), padding=(1, 1)),
    ConvSpec(3, 8, 12, 10, 16, (3, 3), padding=(1, 1)),
    ConvSpec(1, 96, 10, 9, 40, (3, 3), padding=(1, 1)),  # sums as long as a real layer's
    ConvSpec(2, 4, 9, 7, 6, (3, 3), stride=(2, 2), padding=(1, 1)),
    ConvSpec(1, 3, 15, 15, 8, (7, 7), stride=(2, 2), padding=(3, 3)),
    ConvSpec(2, 5, 11, 11, 3, (5, 5), padding=(2, 2)),
    ConvSpec(2, 3, 8, 11, 2, (3, 2), stride=(3, 2), padding=(0, 1)),  # rows and columns that no output sees
    ConvSpec(2, 4, 9, 8, 4, (1, 3), padding=(0, 2)),
    ConvSpec(2, 3, 12, 12, 4, (3, 3), padding=(2, 2), dilation=(2, 2)),
    ConvSpec(2, 3, 12, 9, 4, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(3, 1)),
    ConvSpec(2, 6, 7, 7, 9, (3, 3), padding=(1, 1), groups=3),
    ConvSpec(2, 6, 7, 7, 6, (3, 3), padding=(1, 1), groups=6),
    ConvSpec(3, 8, 5, 6, 7, (1, 1)),
    ConvSpec(2, 8, 6, 6, 4, (1, 1), stride=(2, 2)),
    ConvSpec(2, 3, 4, 5, 6, (4, 5)),  # the filter is as large as the image
    ConvSpec(2, 5, 8, 9, 4, (3, 3), padding=(1, 1), dtype=torch.float64),
    ConvSpec(0, 3, 8, 8, 4, (3, 3), padding=(1, 1)),
)
"""What a kernel is checked with; one that a kernel refuses is passed over."""

TINY = ConvSpec(2, 4, 5, 4, 2, (2, 3), stride=(2, 1), padding=(1, 1), dilation=(1, 1), groups=2)
DOUBLE = 1e-6  # of the error in float32 is what a kernel that takes float64 may have there


def check_kernel(
    kernel: Kernels | KernelChooser | ConvKernel, *, specs: Sequence[ConvSpec] = SPECS, tolerance: float | None = None
) -> None:
    """Check a ConvKernel; or Kernels options: all kernels that they supply, and their chooser on a small network.

    A kernel's promises: every direction of every spec that it does not refuse has the right shape and type and agrees
    with float64 convolution (torch's, and for one tiny spec plain loops over the definition) to a relative L2 error
    of ``tolerance`` (default: the kernel's own ``error``; in float64 a millionth of it), with and without a bias,
    with a prepared weight, in NCHW and NHWC order and for any strides; results stay as they are at the next call;
    nothing is edited; the same through ``torch.ops.engine`` and autograd, under the kernel's name, which it then keeps,
    whichever kernel had it; ``workspace`` counts bytes, ``waste`` multiplications. At least one direction must not be
    refused.
    A chooser's: see ``engine.testing.network``. Raises BrokenPromise.
    """
    if isinstance(kernel, Kernels):
        for candidate in supplied(kernel):
            promises = Promises(kernel)
            promises.name += f"'s kernel {candidate.name}"
            _check_kernel(promises, candidate, specs, tolerance)
        check_network(kernel, tolerance)
    elif hasattr(kernel, "apply"):
        check_network(kernel, tolerance)  # type: ignore[arg-type]
    else:
        _check_kernel(Promises(kernel), kernel, specs, tolerance)


def _check_kernel(promises: Promises, kernel: ConvKernel, specs: Sequence[ConvSpec], tolerance: float | None) -> None:
    promise = "error is the relative L2 error of float32, a number above 0"
    promises.expect(kernel.error > 0, promise, f"it is {kernel.error!r}")
    with promises.works("a name is some letters without a slash"):
        register(kernel, replace=True)  # an author's tests have variants of one name
    computed = 0
    for spec in (*specs, TINY):
        largest = (tolerance or kernel.error) * (DOUBLE if spec.dtype == torch.float64 else 1)
        references = (_reference, _loops) if spec == TINY else (_reference,)
        for reference in references:
            expected = Expected(*_arguments(spec), *reference(spec))
            for words, view in VIEWS.items():
                check = _KernelCheck(promises, kernel, replace(spec, channels_last="NHWC" in words), largest)
                computed += len(check.compare(expected, words, view))
    promises.expect(computed > 0, "a kernel computes something", f"it refuses all {len(specs) + 1} specs")


class Expected:
    """The arguments of a convolution, and the results, in float64 on the CPU."""

    def __init__(
        self,
        images: Tensor,
        weight: Tensor,
        gradient: Tensor,
        output: Tensor,
        images_gradient: Tensor,
        weight_gradient: Tensor,
    ) -> None:
        self.images, self.weight, self.gradient = images, weight, gradient
        self.bias = torch.linspace(-2, 2, weight.shape[0], dtype=torch.float64).to(weight)
        self.output, self.images_gradient, self.weight_gradient = output, images_gradient, weight_gradient
        self.biased = output + self.bias.double().cpu()[:, None, None]


class _KernelCheck:
    """The comparison of one spec, in one layout."""

    def __init__(self, promises: Promises, kernel: ConvKernel, spec: ConvSpec, tolerance: float) -> None:
        self.promises, self.kernel, self.spec, self.tolerance = promises, kernel, spec, tolerance

    def compare(self, expected: Expected, words: str, view: Callable[[Tensor], Tensor]) -> list[str]:
        """Compare with the expected results; return the directions that the kernel does not refuse."""
        empty = self.spec.batch == 0  # the ops keep such a batch from the kernel
        taken = [direction for direction in DIRECTIONS if empty or self._takes(direction)]
        x, w, g = (view(tensor.clone()) for tensor in (expected.images, expected.weight, expected.gradient))
        if not empty:
            with self.promises.works(f"what refuses() does not refuse is computed ({self.spec})"):
                results = self._call(taken, expected, x, w, g)
            self._unedited(expected, x, w, g)
            self._compare(results, words)
            for direction in taken:
                self._measures(direction)
        if taken:
            with self.promises.works(f"torch.ops.engine computes with the kernel ({self.spec})"):
                results = self._through_ops(taken, expected, x, w, g)
            self._unedited(expected, x, w, g)
            self._compare(results, f"{words} through torch.ops.engine")
        return [] if empty else taken

    def _takes(self, direction: str) -> bool:
        promise = "refuses() returns None or says why"
        with self.promises.works(promise):
            reason = self.kernel.refuses(self.spec, direction)
        valid = reason is None or (isinstance(reason, str) and bool(reason))
        self.promises.expect(valid, promise, f"it returns {reason!r}")
        return reason is None

    def _call(
        self, taken: Sequence[str], expected: Expected, x: Tensor, w: Tensor, g: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what the kernel computes, and what it should, by name; all before anything is compared."""
        kernel, spec, results = self.kernel, self.spec, {}
        if "forward" in taken:
            bias = expected.bias.clone()
            prepared = kernel.prepare(w, spec)
            results["forward"] = kernel.forward(x, w, None, spec), expected.output
            results["forward with a bias"] = kernel.forward(x, w, bias, spec), expected.biased
            results["forward with a prepared weight"] = kernel.forward(x, prepared, None, spec), expected.output
            results["forward with a prepared weight and a bias"] = (
                kernel.forward(x, prepared, bias, spec), expected.biased,
            )  # fmt: skip
        if "backward_input" in taken:
            results["backward_input"] = kernel.backward_input(g, w, spec), expected.images_gradient
        if "backward_weight" in taken:
            results["backward_weight"] = kernel.backward_weight(g, x, spec), expected.weight_gradient
        return results

    def _through_ops(
        self, taken: Sequence[str], expected: Expected, x: Tensor, w: Tensor, g: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the output with a bias and the gradients, as a model gets them, beside what they should be."""
        spec = self.spec
        names = "/".join(self.kernel.name if direction in taken else NATIVE.name for direction in DIRECTIONS)
        images, weight = x.detach().requires_grad_(), w.detach().requires_grad_()
        output = torch.ops.engine.conv2d(
            images, weight, expected.bias, spec.stride, spec.padding, spec.dilation, spec.groups, names
        )
        to_images, to_weight = torch.autograd.grad(output, (images, weight), g)
        return {
            "forward with a bias": (output.detach(), expected.biased),
            "backward_input": (to_images, expected.images_gradient),
            "backward_weight": (to_weight, expected.weight_gradient),
        }

    def _compare(self, results: Mapping[str, tuple[Tensor, Tensor]], words: str) -> None:
        for name, (result, expected) in results.items():
            promise = f"{name}{words} has the right shape and type"
            seen = f"it is {result.dtype} {list(result.shape)} instead of {list(expected.shape)} ({self.spec})"
            self.promises.expect(result.shape == expected.shape and result.dtype == self.spec.dtype, promise, seen)
            error = relative_error(result, expected)
            promise = f"{name}{words} agrees with float64 convolution to a relative L2 error of {self.tolerance:g}"
            self.promises.expect(error <= self.tolerance, promise, f"the error is {error:.3g} ({self.spec})")

    def _unedited(self, expected: Expected, x: Tensor, w: Tensor, g: Tensor) -> None:
        same = all(map(torch.equal, (x, w, g), (expected.images, expected.weight, expected.gradient)))
        self.promises.expect(same, "a kernel never edits its arguments", f"an argument changed ({self.spec})")

    def _measures(self, direction: str) -> None:
        space = self.kernel.workspace(self.spec, direction)
        right = isinstance(space, int) and not isinstance(space, bool) and space >= 0
        self.promises.expect(right, "workspace() is a number of bytes", f"it returns {space!r} ({self.spec})")
        waste = self.kernel.waste(self.spec)
        promise = "waste() is a number of multiplications per useful one"
        self.promises.expect(math.isfinite(waste) and waste >= 0, promise, f"it returns {waste!r} ({self.spec})")


def _arguments(spec: ConvSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return normally distributed images, weight and output gradient in the spec's type, in NCHW order."""
    generator = torch.Generator().manual_seed(0)
    images, weight, gradient = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(spec.device, spec.dtype)
        for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)
    )
    return images, weight, gradient


def _strided(tensor: Tensor) -> Tensor:
    """Return the same values in a view whose last dimension is not dense."""
    return torch.stack([tensor, torch.full_like(tensor, 1e3)], dim=-1)[..., 0]


VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": lambda tensor: tensor,
    " in NHWC order": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    " of strided views": _strided,
}


def _reference(spec: ConvSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output and the gradients of images and weight, by torch in float64."""
    images, weight, gradient = (tensor.double().cpu() for tensor in _arguments(spec))
    geometry = (list(spec.stride), list(spec.padding), list(spec.dilation), False, [0, 0], spec.groups)
    output = torch.ops.aten.convolution(images, weight, None, *geometry)
    mask = (True, True, False)
    back = torch.ops.aten.convolution_backward(gradient, images, weight, None, *geometry, mask)
    return output, back[0], back[1]


def _loops(spec: ConvSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as ``_reference`` from the definition alone: one product after the other."""
    images, weight, gradient = (tensor.double().cpu() for tensor in _arguments(spec))
    output, images_gradient, weight_gradient = (
        torch.zeros(shape, dtype=torch.float64) for shape in (spec.output_shape, spec.input_shape, spec.weight_shape)
    )
    per_group, filters = spec.channels // spec.groups, spec.filters // spec.groups
    for n, f, y, x in itertools.product(*map(range, spec.output_shape)):
        for c, i, j in itertools.product(range(per_group), *map(range, spec.kernel)):
            channel = f // filters * per_group + c
            row = y * spec.stride[0] + i * spec.dilation[0] - spec.padding[0]
            column = x * spec.stride[1] + j * spec.dilation[1] - spec.padding[1]
            if 0 <= row < spec.height and 0 <= column < spec.width:
                output[n, f, y, x] += images[n, channel, row, column] * weight[f, c, i, j]
                images_gradient[n, channel, row, column] += gradient[n, f, y, x] * weight[f, c, i, j]
                weight_gradient[f, c, i, j] += gradient[n, f, y, x] * images[n, channel, row, column]
    return output, images_gradient, weight_gradient
