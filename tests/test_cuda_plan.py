"""The launch plan of the CUDA forward: a pure function of the problem, within the limits of every device."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnext_kernels.backends import cuda
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import problems

# The least of sm_80 to sm_120: what one block may have of shared memory; grids' limits are the same on all.
SHARED, MOST_X, MOST_Y = 99 * 1024, 2**31 - 1, 65535


def _native(problem):
    return cuda._native_conv(problem, (0, 0, 0, 0))


def _check(problem):
    native = _native(problem)
    plan = native.forward_plan()
    _check_walk(plan, problem, problem.output_shape[2:], problem.stride[0], problem.c_out)
    if problem.n:
        x = plan["grid"][0]
        assert native.workspace() >= 4 * plan["packed_words"] + 8 * x * problem.c_out + 4 * x
    # Another device, another time: the statistics' tiles are the same.
    assert native.forward_plan() == plan
    if not native.backward_reasons():
        _check_walk(native.dgrad_plan(), problem, _walked_by_dgrad(problem), 1, problem.c_in)
        assert native.dgrad_workspace() == 4 * native.dgrad_plan()["packed_words"]


def _walked_by_dgrad(problem):
    """Rows and columns of dx, or pairs of them, of which the first may lack its first half."""
    size, padding = (problem.h, problem.w), problem.padding
    return size if problem.stride[0] == 1 else [(s + (p % 2 == 0) + 1) // 2 for s, p in zip(size, padding, strict=True)]


def _check_walk(plan, problem, size, stride, channels):
    """That a plan covers pixels and channels, once, within the limits."""
    (oh, ow), (x, y), dilation = size, plan["grid"], problem.dilation
    assert plan["threads"] == 128 and 0 < plan["shared_bytes"] <= SHARED
    if problem.n == 0:
        assert x == 0
        return
    assert 0 < x <= MOST_X and 0 < y <= MOST_Y
    # As many positions as fit the columns staged, with the frames of the images that they may cross.
    positions, extra = plan["positions"], 2 * dilation[1] if stride == 1 else 1
    assert 0 < positions <= 32
    columns = [each + extra * (1 + -(-(each - 1) // ow)) for each in (positions, positions + 1)]
    assert columns[0] <= plan["columns"] and (positions == 32 or columns[1] > plan["columns"])
    column_blocks, row_blocks = x // plan["row_blocks"], plan["row_blocks"]
    assert column_blocks * row_blocks == x
    assert (column_blocks - 1) * positions < problem.n * ow <= column_blocks * positions
    assert row_blocks % dilation[0] == 0
    rows = -(-oh // dilation[0])
    assert (row_blocks // dilation[0] - 1) * plan["rows"] < rows <= row_blocks // dilation[0] * plan["rows"]
    assert y * 64 >= channels
    assert plan["packed_words"] % (32 * plan["weight_registers"]) == 0


def _models():
    shapes = {**problems.resnext50(32), **problems.cardinality(256), **problems.regnety_016(8)}
    return {name: replace(p, dtype=torch.float16, layout="nhwc") for name, p in shapes.items()}


@pytest.mark.parametrize("name", _models())
def test_models(emulated_cuda, name):
    problem = _models()[name]
    width = problem.c_in // problem.groups
    taken = not _native(problem).reasons()
    assert taken == (width in (1, 2, 4, 8, 16, 32) or (width % 2 == 0 and width <= 32))
    if taken:
        _check(problem)


@pytest.mark.parametrize(
    ("text", "registers"),
    [
        ("n1_c64_h5_g8", 18), ("n1_c64_h5_g4", 36), ("n1_c64_h5_g2", 72), ("n1_c16_o32_h5_g2", 36),
        ("n1_c16_h5_g2_p2_d2", 36), ("n1_c24_h5_g2", 36), ("n1_c36_h5_g2", 72), ("n1_c32_o64_h5_g2_p2_d2", 36),
    ],
)  # fmt: skip
def test_the_narrowest_width(emulated_cuda, text, registers):
    problem = replace(ConvProblem.parse(text), dtype=torch.float16, layout="nhwc")
    assert _native(problem).forward_plan()["weight_registers"] == registers


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 70), h=st.integers(1, 70), w=st.integers(1, 70), groups=st.integers(1, 40),
    width=st.integers(1, 33), times=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 4),
    dilation=st.integers(1, 4),
)  # fmt: skip
def test_any_problem(emulated_cuda, n, h, w, groups, width, times, stride, padding, dilation):
    if min(h, w) + 2 * padding < 2 * dilation + 1:
        return
    text = f"n{n}_c{groups * width}_h{h}_w{w}_o{groups * width * times}_g{groups}_s{stride}_p{padding}_d{dilation}"
    problem = replace(ConvProblem.parse(text), dtype=torch.bfloat16, layout="nhwc")
    if not _native(problem).reasons():
        _check(problem)


def test_case_rows(emulated_cuda, request, capsys):
    folder = request.config.getoption("--cases")
    if not folder:
        pytest.skip("reads the shapes of a folder: --cases DIR")
    rows = [
        replace(p, dtype=torch.float16, layout="nhwc") for p in problems.case_file(Path(folder) / "grouped_3x3.csv")
    ]
    taken = [problem for problem in rows if not _native(problem).reasons()]
    for problem in taken:
        _check(problem)
    with capsys.disabled():
        print(f"\nCUDA forward takes {len(taken)} of {len(rows)} rows of grouped_3x3.csv")
    assert len(taken) > 100


@pytest.mark.parametrize(
    ("built", "runs", "refuses"),
    [
        ("80-real 90", [(8, 0), (8, 9), (9, 0), (12, 0)], [(7, 5)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("90a", [(9, 0)], [(8, 9)]),
        ("80-virtual", [(8, 0), (10, 0)], [(7, 5)]),
    ],
)
def test_which_devices_a_build_is_for(built, runs, refuses):
    for capability in runs + refuses:
        assert any(cuda._runs_on(capability, each) for each in built.split()) == (capability in runs)
