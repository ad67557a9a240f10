"""Checks a convolution kernel against float64 arithmetic, in its three directions."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from engine.interfaces import ConvKernel, ConvSpec, KernelChooser
from engine.options import Kernels
from engine.testing.promises import Promises

SPECS = (
    ConvSpec(2, 3, 8, 8, 4, (3, 3)),
    ConvSpec(2, 3, 8, 8, 4, (3, 3), padding=(1, 1)),
    ConvSpec(3, 8, 12, 10, 16, (3, 3), padding=(1, 1)),
    ConvSpec(2, 16, 9, 9, 16, (3, 3), padding=(1, 1), channels_last=True),
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
    ConvSpec(0, 3, 8, 8, 4, (3, 3), padding=(1, 1)),
)
"""What a kernel is checked with; one that a kernel refuses is passed over."""

TINY = ConvSpec(2, 4, 5, 4, 2, (2, 3), stride=(2, 1), padding=(1, 1), dilation=(1, 1), groups=2)
LAYERS: tuple[Callable[[], nn.Conv2d], ...] = (
    lambda: nn.Conv2d(3, 8, 3, padding=1),
    lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
    lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
    lambda: nn.Conv2d(8, 6, 1),
    lambda: nn.Conv2d(6, 4, (5, 3), padding="same"),
)


def check_kernel(
    kernel: Kernels | KernelChooser | ConvKernel, *, specs: Sequence[ConvSpec] = SPECS, tolerance: float = 1e-6
) -> None:
    """Check a ConvKernel, or, given Kernels options or their chooser, a small network before and after ``apply``.

    A kernel's promises: for every spec that it does not refuse, forward, backward_input and backward_weight have
    the right shape and type and agree with float64 convolution (torch's, and for one tiny spec plain loops over
    the definition) to a relative L2 error of ``tolerance``; for any strides of its arguments; with a prepared
    weight too; nothing is edited; ``workspace`` counts bytes. At least one spec must not be refused.
    A chooser's: it leaves the parameters as they are, names layers that exist, and the network's output and
    gradients agree with float64 to ``tolerance``. Raises BrokenPromise.
    """
    promises = Promises(kernel)
    if isinstance(kernel, Kernels):
        kernel = kernel.build()
    if hasattr(kernel, "apply"):
        _check_chooser(promises, kernel, tolerance)  # type: ignore[arg-type]
        return
    taken = [spec for spec in (*specs, TINY) if _takes(promises, kernel, spec)]
    promises.expect(bool(taken), "a kernel computes something", f"it refuses all {len(specs) + 1} specs")
    for spec in taken:
        check = _KernelCheck(promises, kernel, spec, tolerance)
        check.compare(*_arguments(spec), *_reference(spec))
        if spec == TINY:
            check.compare(*_arguments(spec), *_loops(spec))


def _takes(promises: Promises, kernel: ConvKernel, spec: ConvSpec) -> bool:
    promise = "refuses() returns None or says why"
    with promises.works(promise):
        reason = kernel.refuses(spec)
    promises.expect(reason is None or (isinstance(reason, str) and bool(reason)), promise, f"it returns {reason!r}")
    return reason is None


class _KernelCheck:
    def __init__(self, promises: Promises, kernel: ConvKernel, spec: ConvSpec, tolerance: float) -> None:
        self.promises, self.kernel, self.spec, self.tolerance = promises, kernel, spec, tolerance

    def compare(
        self,
        images: Tensor,
        weight: Tensor,
        gradient: Tensor,
        output: Tensor,
        images_gradient: Tensor,
        weight_gradient: Tensor,
    ) -> None:
        """Compare the kernel's results with the expected ones, for contiguous arguments and for strided views."""
        kernel, spec = self.kernel, self.spec
        for words, view in (("", lambda tensor: tensor), (" of strided views", _strided)):
            x, w, g = (view(tensor.clone()) for tensor in (images, weight, gradient))
            with self.promises.works(f"what refuses() does not refuse is computed ({spec})"):
                results = {
                    f"forward{words}": (kernel.forward(x, w, spec), output),
                    f"forward{words} with a prepared weight": (
                        kernel.forward(x, kernel.prepare(w, spec), spec),
                        output,
                    ),
                    f"backward_input{words}": (kernel.backward_input(g, w, spec), images_gradient),
                    f"backward_weight{words}": (kernel.backward_weight(g, x, spec), weight_gradient),
                }
                space = kernel.workspace(spec)
            same = torch.equal(x, images) and torch.equal(w, weight) and torch.equal(g, gradient)
            self.promises.expect(same, "a kernel never edits its arguments", f"an argument changed ({spec})")
            for name, (result, expected) in results.items():
                self._compare(name, result, expected)
            right = isinstance(space, int) and not isinstance(space, bool) and space >= 0
            self.promises.expect(right, "workspace() is a number of bytes", f"it returns {space!r} ({spec})")

    def _compare(self, name: str, result: Tensor, expected: Tensor) -> None:
        promise = f"{name} has the right shape and type"
        seen = f"it is {result.dtype} {list(result.shape)} instead of {list(expected.shape)} ({self.spec})"
        self.promises.expect(result.shape == expected.shape and result.dtype == self.spec.dtype, promise, seen)
        error = relative_error(result, expected)
        promise = f"{name} agrees with float64 convolution to a relative L2 error of {self.tolerance:g}"
        self.promises.expect(error <= self.tolerance, promise, f"the error is {error:.3g} ({self.spec})")


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Return ||result - expected|| / ||expected||; for an expectation of zeros, ||result||."""
    difference = float((result.double().cpu() - expected).norm())
    return difference / (float(expected.norm()) or 1.0)


def _arguments(spec: ConvSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return normally distributed images, weight and output gradient in the spec's type and layout."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    images, weight, gradient = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        .to(spec.device, spec.dtype)
        .contiguous(memory_format=layout)
        for shape in (spec.input_shape, spec.weight_shape, spec.output_shape)
    )
    return images, weight, gradient


def _strided(tensor: Tensor) -> Tensor:
    """Return the same values in a view whose last dimension is not dense."""
    return torch.stack([tensor, torch.full_like(tensor, 1e3)], dim=-1)[..., 0]


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


def _check_chooser(promises: Promises, chooser: KernelChooser, tolerance: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(*(layer() for layer in LAYERS))
        images = torch.randn(2, 3, 14, 12)
    expected = copy.deepcopy(model).double()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with promises.works("apply() takes any model with convolutions"):
        rows = chooser.apply(model, (2, 3, 14, 12))
    after = dict(model.named_parameters())
    kept = list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    promises.expect(kept, "apply() leaves the parameters and their names as they are", f"they are {list(after)}")
    unknown = {row.layer for row in rows} - {name for name, _ in model.named_modules()}
    promises.expect(not unknown, "apply() tells of layers that the model has", f"it has no {sorted(unknown)}")
    for training in (True, False):
        mine, reference = _results(model.train(training), images), _results(expected.train(training), images.double())
        for name, result in mine.items():
            error = relative_error(result, reference[name])
            promise = f"the network's {name} agrees with float64 to a relative L2 error of {tolerance:g}"
            promises.expect(error <= tolerance, promise, f"the error is {error:.3g}")


def _results(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the output and the gradients of the images and every parameter, by name."""
    images = images.clone().requires_grad_()
    model.zero_grad()
    output = model(images)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    gradients = {name: p.grad for name, p in [("images", images), *model.named_parameters()]}
    return {"output": output.detach(), **{f"gradient of {name}": g for name, g in gradients.items() if g is not None}}
