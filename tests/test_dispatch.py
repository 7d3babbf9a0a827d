"""Choosing a backend: the order, forced names, reasons, fallbacks that show."""

import logging

import pytest
import torch

import resnext_kernels as rk
from resnext_kernels import backends
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases

PROBLEM = ConvProblem.parse("n2_c8_h5_g2")


@pytest.fixture
def forgotten(monkeypatch):
    """As in a new process: nothing was chosen or told yet."""
    backends.forget()
    monkeypatch.setattr(backends, "_told", set())


def run_conv(dtype=torch.float32):
    x, weight = torch.ones(1, 4, 5, 5, dtype=dtype), torch.ones(4, 2, 3, 3, dtype=dtype)
    with rk.backends.record() as ran:
        rk.functional.grouped_conv2d(x, weight, padding=1, groups=2)
    return [(op, name) for op, _, name in ran]


@pytest.mark.parametrize("name", ["cpu", "aten", "reference"])
def test_named_backend_runs(name):
    with rk.use_backend(name):
        assert run_conv() == [("grouped_conv2d", name)]


@pytest.mark.native
def test_first_name_that_can():
    with rk.use_backend("cpu", "reference"):
        assert run_conv() == [("grouped_conv2d", "cpu")]
        assert run_conv(torch.float64) == [("grouped_conv2d", "reference")]
        with rk.use_backend("aten"):
            assert run_conv() == [("grouped_conv2d", "aten")]
        assert run_conv() == [("grouped_conv2d", "cpu")]
    assert backends.requested() == "auto"


def test_error_in_the_block_restores_the_choice():
    with pytest.raises(ZeroDivisionError):
        with rk.use_backend("reference"):
            raise ZeroDivisionError
    assert backends.requested() == "auto"


@pytest.mark.native
def test_auto_is_plain_pytorch_until_measured():
    assert run_conv() == [("grouped_conv2d", "aten")]
    name, refused = backends.explain("grouped_conv2d", PROBLEM)
    assert name == "aten" and "not measured on this CPU" in refused["cpu"][0]


@pytest.mark.native
def test_fallback_is_told_once_aloud_and_for_each_problem_at_info(forgotten, caplog):
    caplog.set_level(logging.INFO, logger="resnext_kernels")
    for _ in range(2):
        run_conv()
    run_conv(torch.float64)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["WARNING", "INFO"]
    assert "grouped_conv2d on n1_c4_h5_w5" in told[0][1] and "runs on aten, not cpu: not measured" in told[0][1]
    assert "takes float32, bfloat16 and float16, got torch.float64" in told[1][1]


def test_all_reasons_are_listed(monkeypatch):
    monkeypatch.delattr(backends.cpu, "bn_stats")
    double = ConvProblem.parse("n2_c8_h5_g2_float64_cuda")
    with pytest.raises(rk.BackendError) as error:
        backends.select("bn_stats", double, "cpu")
    for words in ("bn_stats on n2_c8_h5", "has no bn_stats", "got torch.float64", "got cuda"):
        assert words in str(error.value)


def test_reference_and_aten_are_complete():
    composite = {"bn_act", "grouped_conv2d_bn_act"}
    for op in set(cases.CASES) - composite:
        assert backends.explain(op, PROBLEM, "reference")[0] == "reference"
        assert backends.explain(op, PROBLEM, "aten")[0] == "aten"
    assert backends.explain("no_such_op", PROBLEM)[0] is None


def test_missing_native_module_is_a_reason(monkeypatch):
    monkeypatch.setattr(backends.cpu._native, "missing", "native kernels are not built")
    backends.forget()
    assert rk.available_backends()["cpu"] == "native kernels are not built"
    with rk.use_backend("cpu"), pytest.raises(rk.BackendError, match="cpu: native kernels are not built"):
        run_conv()
    backends.forget()


def test_problem_is_memoised():
    x, weight = torch.ones(1, 4, 5, 5), torch.ones(4, 2, 3, 3)
    first, second = (ConvProblem.from_tensors(x, weight, (1, 1), (0, 0), (1, 1), 2) for _ in range(2))
    assert first is second


@pytest.mark.parametrize("layout", cases.FORMATS)
def test_problem_reads_as_it_prints(layout):
    problem = ConvProblem.parse(f"n3_c12_h9_w8_o24_k3x1_s2x1_p1x0_d2_g3_bfloat16_{layout}_cuda")
    assert ConvProblem.parse(str(problem)) == problem
    assert problem.output_shape == (3, 24, 4, 8)
    assert problem.flops == 2 * 3 * 24 * 4 * 8 * 4 * 3


def test_layout_follows_the_input_alone():
    """Sizes of one leave the format open; then it is NCHW, whatever the strides say."""
    for shape in [(2, 1, 4, 4), (2, 4, 1, 1), (1, 4, 3, 3), (2, 4, 3, 1)]:
        for layout, memory in cases.FORMATS.items():
            x = torch.ones(shape).to(memory_format=memory)
            weight = torch.ones(shape[1], shape[1], 1, 1)
            problem = ConvProblem.from_tensors(x, weight, (1, 1), (0, 0), (1, 1), 1)
            assert problem.layout == ("nchw" if x.is_contiguous() else layout)
