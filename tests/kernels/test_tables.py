"""The table at the start of a run: like layers together, measured ones with their times."""

from __future__ import annotations

from engine.interfaces import KernelRow
from engine.tables import kernel_table


def test_like_layers_share_a_line():
    rows = [KernelRow(f"conv{i}", "native", "chosen") for i in range(5)]
    rows += [KernelRow("head", "fft", "large"), KernelRow("neck", "fft", "small"), KernelRow("tail", "fft", "large")]
    assert kernel_table(rows).splitlines() == [
        "kernels: conv0 ... conv4 (5 layers): native (chosen)",
        "kernels: head, tail: fft (large)",
        "kernels: neck: fft (small)",
    ]


def test_without_layers_there_is_no_table():
    assert kernel_table([]) == ""


def test_measured_layers_have_a_line_each_with_the_times_of_what_runs_and_of_torchs_own():
    first = {"forward": {"native": 4.0, "fft": 1.5}, "backward_weight": {"native": 2.0, "fft": 3.0}}
    second = {name: {"native": 1.0, "fft": 0.25} for name in ("forward", "backward_input", "backward_weight")}
    rows = [
        KernelRow("conv1", "fft / native", "fastest as measured", first),
        KernelRow("layer1.conv2", "fft", "fastest as measured", second),
        KernelRow("head", "naive", "kernels.layers"),
    ]
    lines = kernel_table(rows).splitlines()
    assert lines[0] == "kernels: head: naive (kernels.layers)"
    cells = [[cell.strip() for cell in line.split("  ") if cell] for line in lines[1:4]]
    assert cells == [
        ["kernels: layer", "forward, ms (torch's own)", "to images, ms (torch's own)", "to weight, ms (torch's own)"],
        ["conv1", "fft 1.50 (4.00)", "not needed", "native 2.00 (2.00)"],
        ["layer1.conv2", "fft 0.25 (1.00)", "fft 0.25 (1.00)", "fft 0.25 (1.00)"],
    ]
    starts = {line.index(cell) for line, cell in zip(lines[1:4], ("forward", "fft", "fft"), strict=True)}
    assert len(starts) == 1, "columns are aligned"
    # 1.5 + 2 + 3 x 0.25, and 4 + 2 + 3 x 1
    assert lines[4] == "kernels: 4.2 ms for all of these, torch's own 9.0 ms"
    assert len(lines) == 5


def test_what_was_not_measured_is_left_out_and_nothing_is_summed():
    rows = [
        KernelRow("conv1", "fft", "mine", {"forward": {"fft": 1.0}}),
        KernelRow("conv2", "fft / naive", "mine", {"forward": {"native": 2.0}, "backward_weight": {"naive": 3.0}}),
        KernelRow("conv3", "fft / naive", "mine", {"forward": {}, "backward_input": {}, "backward_weight": {}}),
    ]
    lines = kernel_table(rows).splitlines()
    assert [[cell.strip() for cell in line.split("  ") if cell] for line in lines[1:]] == [
        ["conv1", "fft 1.00", "not needed", "not needed"],
        ["conv2", "fft (2.00)", "not needed", "naive 3.00"],
        ["conv3", "fft / naive", "fft / naive", "fft / naive"],
    ]


def test_a_column_that_no_layer_needs_is_left_out():
    rows = [KernelRow("conv1", "fft", "fastest as measured", {"forward": {"native": 4.0, "fft": 1.0}})]
    lines = kernel_table(rows).splitlines()
    assert lines[0].split("  ") == ["kernels: layer", "forward, ms (torch's own)"]
    assert lines[1].split() == ["conv1", "fft", "1.00", "(4.00)"]
