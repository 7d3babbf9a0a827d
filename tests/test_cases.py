"""Shapes from other libraries' tests (--cases DIR): kernels against two float64 references, bit for bit."""

from pathlib import Path

import pytest
import torch

from resnext_kernels import _native
from resnext_kernels.testing import cases, exact, problems
from resnext_kernels.testing.verify import call

FORWARD, BACKWARD = "grouped_conv2d", "grouped_conv2d_backward"


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
    rows = problems.case_file(Path(folder) / "grouped_3x3.csv")
    fitting = [problem for problem in rows if problems.fits(problem)]
    executed = 0
    for problem in fitting:
        check(problem)
        executed += 1
    with capsys.disabled():
        print(f"\ncase rows executed: {executed} of {len(rows)}, {len(rows) - len(fitting)} are too large")
    assert executed == len(fitting) > 0.5 * len(rows)
