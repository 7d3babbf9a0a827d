"""Shapes from other libraries' tests (--cases DIR): kernels against two float64 references, bit for bit."""

import csv
from pathlib import Path

import pytest
import torch

import resnext_kernels as rk
from resnext_kernels import _native
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact

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
        args = cases.make(op, problem, integers=True)
        with rk.use_backend("reference"):
            found = exact.mismatch(op, problem, "reference", oracle="aten")
        assert found is None, found
        assert args[0].isfinite().all()
    if _native.missing is None:
        for layout in cases.FORMATS:
            found = exact.mismatch(FORWARD, ConvProblem.parse(f"{problem}".replace("nchw", layout)), "cpu")
            assert found is None, found


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
