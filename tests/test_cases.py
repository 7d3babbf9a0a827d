"""Shapes from other libraries' tests (--cases DIR): kernels against two float64 references, bit for bit."""

from pathlib import Path

import pytest
import torch
from test_cpu import check_instruction_set

from resnext_kernels.testing import cases, exact, problems
from resnext_kernels.testing.verify import call

OPS = ("grouped_conv2d", "grouped_conv2d_backward")


def fitting(folder):
    """The rows of grouped_3x3.csv and every tenth of depthwise_3x3.csv, those small enough."""
    grouped, depthwise = (problems.case_file(Path(folder) / f"{kind}_3x3.csv") for kind in ("grouped", "depthwise"))
    return [problem for problem in grouped + depthwise[::10] if problems.fits(problem)]


def in_float64(op, problem):
    args = exact.upcast(cases.make(op, problem, integers=True))
    return args, call(op, args, "aten")


def mismatches(folder):
    """Where the native kernels are not exact, in both layouts, on any of several numbers of threads."""
    found = []
    for problem in fitting(folder):
        for op in OPS:
            args, expected = in_float64(op, problem)
            for layout, memory in cases.FORMATS.items():
                images = (a.float() if isinstance(a, torch.Tensor) else a for a in args)
                images = [a.contiguous(memory_format=memory) if getattr(a, "ndim", 0) == 4 else a for a in images]
                for threads in (1, 2, 3, 7):
                    torch.set_num_threads(threads)
                    results = call(op, tuple(images), "cpu")
                    if not all(torch.equal(r, e.float()) for r, e in zip(results, expected, strict=True)):
                        found.append(f"{op} on {problem} in {layout} on {threads} threads")
    return found


@pytest.fixture(scope="module")
def folder(request):
    found = request.config.getoption("--cases")
    if found is None:
        pytest.skip("needs --cases DIR, a folder with grouped_3x3.csv and depthwise_3x3.csv")
    return found


def test_references_agree(folder, capsys):
    rows = fitting(folder)
    for problem in rows:
        for op in OPS:
            args, expected = in_float64(op, problem)
            for result, other in zip(call(op, args, "reference"), expected, strict=True):
                assert torch.equal(result, other), f"{op} on {problem}: the references differ"
    total = len(problems.case_file(Path(folder) / "grouped_3x3.csv"))
    grouped = sum(problem.groups < problem.c_in for problem in rows)
    with capsys.disabled():
        print(f"\ncase rows executed: {grouped} of {total} grouped, {len(rows) - grouped} depthwise")
    assert grouped > 0.5 * total


@pytest.mark.native
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_kernels_are_exact(isa, folder):
    check_instruction_set(isa, "test_cases", folder)
