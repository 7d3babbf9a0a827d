"""Shapes from other libraries' tests (--cases DIR): kernels against two float64 references, bit for bit."""

import csv
from pathlib import Path

import pytest
import torch

from resnext_kernels import _native
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import call

MAX_MACS, MAX_ELEMENTS = 1.5e8, 2**22
FORWARD, BACKWARD = "grouped_conv2d", "grouped_conv2d_backward"


def problem_of(row) -> ConvProblem:
    size = {key: int(value) for key, value in row.items() if key not in ("source", "name")}
    pairs = (tuple(size[f"{key}{axis}"] for axis in axes) for key, axes in
             (("k", "hw"), ("stride_", "hw"), ("pad_", "hw"), ("dil_", "hw")))  # fmt: skip
    return ConvProblem(size["N"], size["C_in"], size["H"], size["W"], size["C_out"], *pairs, size["groups"],
                       torch.float32, "nchw", "cpu")  # fmt: skip


def fits(problem) -> bool:
    elements = problem.n * problem.h * problem.w * max(problem.c_in, problem.c_out)
    return elements <= MAX_ELEMENTS and problem.flops / 2 <= MAX_MACS


def check(problem):
    """The two references agree in float64, forward and backward; the kernel equals them in both layouts."""
    for op in (FORWARD, BACKWARD):
        args = exact.upcast(cases.make(op, problem, integers=True))
        expected = call(op, args, "aten")
        for result, other in zip(call(op, args, "reference"), expected, strict=True):
            assert torch.equal(result, other), f"{op} on {problem}: the references differ"
        if op == FORWARD and _native.missing is None:
            x, *rest = (a.float() if isinstance(a, torch.Tensor) else a for a in args)
            for layout, memory in cases.FORMATS.items():
                (z,) = call(op, (x.contiguous(memory_format=memory), *rest), "cpu")
                assert torch.equal(z, expected[0].float()), f"{op} on {problem}: cpu differs in {layout}"


def test_every_row_of_the_case_file(request, capsys):
    folder = request.config.getoption("--cases")
    if folder is None:
        pytest.skip("needs --cases DIR, a folder with grouped_3x3.csv")
    problems = [problem_of(row) for row in csv.DictReader((Path(folder) / "grouped_3x3.csv").open())]
    fitting = [problem for problem in problems if fits(problem)]
    executed = 0
    for problem in fitting:
        check(problem)
        executed += 1
    with capsys.disabled():
        print(f"\ncase rows executed: {executed} of {len(problems)}, {len(problems) - len(fitting)} are too large")
    assert executed == len(fitting) > 0.5 * len(problems)
