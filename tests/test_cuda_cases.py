"""Shapes from other libraries' tests (--cases DIR) under emulation: the CUDA forward bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
from emulated import modes

from resnext_kernels.backends import cuda
from resnext_kernels.testing import exact, problems

MOST_FLOPS = 2e7
# Each dtype has rows of its own.
STEP = 9


def _shrunk(problem):
    """Fewer and smaller images until the emulation takes a second; nothing else changes."""
    least = [2 * d + 1 + s for d, s in zip(problem.dilation, problem.stride, strict=True)]
    problem = replace(problem, n=min(problem.n, 3))
    while problem.flops > MOST_FLOPS and (problem.n > 1 or problem.h > least[0] or problem.w > least[1]):
        if problem.n > 1:
            problem = replace(problem, n=problem.n - 1)
        else:
            # An odd size stays odd: where the last rows and columns meet the stride goes by it.
            h, w = (max(size - 2 * (size // 4), low) for size, low in zip((problem.h, problem.w), least, strict=True))
            problem = replace(problem, h=min(h, problem.h), w=min(w, problem.w))
    return problem


@pytest.mark.parametrize("dtype", cuda._DTYPES, ids=str)
def test_rows(emulated_cuda, request, capsys, dtype):
    folder = request.config.getoption("--cases")
    if not folder:
        pytest.skip("reads the shapes of a folder: --cases DIR")
    rows = (replace(p, dtype=dtype, layout="nhwc") for p in problems.case_file(Path(folder) / "grouped_3x3.csv"))
    # An image of one pixel is in both layouts, and the ops read it as NCHW.
    rows = (problem for problem in rows if problem.h * problem.w > 1)
    taken = [problem for problem in rows if not cuda.unsupported_reasons("grouped_conv2d", problem)]
    sample = taken[cuda._DTYPES.index(dtype) :: STEP]
    for problem in map(_shrunk, sample):
        for _ in modes(emulated_cuda, str(problem)):
            assert exact.mismatch("grouped_conv2d_affine_act", problem, "cuda") is None
    with capsys.disabled():
        print(f"\n{len(sample)} of {len(taken)} rows that the CUDA forward takes in {dtype} ran under emulation")
    assert len(sample) > 10
