"""A table of mistakes and the words of the error each must give."""

import pytest
import torch

import resnext_kernels as rk
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases

X, W = torch.zeros(1, 8, 5, 5), torch.zeros(4, 2, 3, 3)
CONV = {
    "input is 0-d": (dict(input=X.sum()), ValueError, r"input: expected 4 dimensions .* got shape \(\)"),
    "stride is no integer": (dict(stride=1.5), ValueError, "stride: expected an int or a pair of ints, got 1.5"),
    "groups is no integer": (dict(groups=4.0), ValueError, "groups: expected an int, got 4.0"),
    "same with a stride": (dict(padding="same", stride=2), ValueError, "padding: expected ints, 'valid'.* F.pad"),
    "unknown padding": (dict(padding="full"), ValueError, "padding: expected ints, 'valid', or 'same'"),
    "input is 3-d": (dict(input=X[0]), ValueError, r"input: expected 4 dimensions .* got shape \(8, 5, 5\)"),
    "weight is 3-d": (dict(weight=W[0]), ValueError, r"weight: expected 4 dimensions .* got shape \(2, 3, 3\)"),
    "weight of other groups": (
        dict(groups=2),
        ValueError,
        r"weight: expected shape \(C_out, C_in/groups, kH, kW\) = \(4, 4, 3, 3\), got \(4, 2, 3, 3\)",
    ),
    "groups do not divide": (dict(groups=3), ValueError, "groups: expected a positive divisor of C_in = 8"),
    "groups of zero": (dict(groups=0), ValueError, "groups: expected a positive divisor"),
    "no channels": (dict(input=X[:, :0]), ValueError, "groups: expected a positive divisor of C_in = 0"),
    "weight dtype": (dict(weight=W.half()), TypeError, r"weight: expected dtype torch.float32 .*\.to\(\)"),
    "integer input": (dict(input=X.int(), weight=W.int()), TypeError, "input: expected dtype float64, float32"),
    "bias length": (dict(bias=torch.zeros(3)), ValueError, r"bias: expected shape \(C_out,\) = \(4,\), got \(3,\)"),
    "stride of zero": (dict(stride=0), ValueError, "stride: expected two integers >= 1"),
    "three paddings": (dict(padding=(1, 1, 1)), ValueError, "padding: expected an int or a pair"),
    "negative padding": (dict(padding=-1), ValueError, "padding: expected two integers >= 0"),
    "dilation of zero": (dict(dilation=0), ValueError, "dilation: expected two integers >= 1"),
    "image too small": (dict(dilation=3), ValueError, "input: expected H and W of at least"),
    "empty kernel": (dict(weight=W[..., :0]), ValueError, "weight: expected kernel sizes >= 1"),
    "other device": (dict(weight=W.to("meta")), ValueError, "weight: expected device cpu"),
}


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("mistake", CONV)
def test_conv_mistake_is_explained(mistake, backend):
    changes, error, words = CONV[mistake]
    with rk.use_backend(backend), pytest.raises(error, match=words):
        rk.functional.grouped_conv2d(**{"input": X, "weight": W, "groups": 4, **changes})


V = torch.ones(4)
BN = dict(running_mean=V, running_var=V, bn_weight=V, bn_bias=V)
BATCH_NORM = {
    "length": (dict(bn_weight=torch.ones(5)), ValueError, r"bn_weight: expected shape \(C_out,\) = \(4,\), got \(5,\)"),
    "integer vector": (dict(bn_bias=V.int()), TypeError, "bn_bias: expected a floating dtype, got torch.int32"),
    "only a mean": (dict(running_var=None), ValueError, "running_var: expected a vector as running_mean is one"),
    "no statistics": (dict(running_mean=None, running_var=None), ValueError, "running_mean: .* use training=True"),
    "negative eps": (dict(eps=-1e-5), ValueError, "eps: expected a number >= 0, got -1e-05"),
    "no momentum": (dict(momentum=None), ValueError, "momentum: expected a number, got None; for a cumulative"),
    "differentiable statistics": (
        dict(running_mean=torch.ones(4, requires_grad=True)),
        ValueError,
        "running_mean: expected a buffer without gradient",
    ),
    "no eps": (dict(training=True, eps=0.0), ValueError, "eps: expected a positive number when training, got 0.0"),
    "activation": (dict(activation="gelu"), ValueError, "activation: expected one of identity, relu, silu, got 'gelu'"),
    "vector on another device": (dict(running_mean=V.to("meta")), ValueError, "running_mean: expected device cpu"),
}


@pytest.mark.parametrize("mistake", BATCH_NORM)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_batch_norm_mistake_is_explained(mistake, backend):
    changes, error, words = BATCH_NORM[mistake]
    with rk.use_backend(backend):
        with pytest.raises(error, match=words):
            rk.functional.grouped_conv2d_bn_act(X, W, groups=4, **{**BN, **changes})
        with pytest.raises(error, match=words):
            rk.functional.bn_act(X[:, :4], **{**BN, **changes})


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_one_value_a_channel_cannot_train(backend):
    with rk.use_backend(backend), pytest.raises(ValueError, match="expected more than 1 value per channel"):
        rk.functional.bn_act(X[:, :4, :1, :1], **BN, training=True)


def test_residual_mistakes_are_explained():
    with pytest.raises(ValueError, match="residual: expected shape"):
        rk.functional.bn_act(X[:, :4], **BN, residual=X)
    with pytest.raises(TypeError, match="residual: expected dtype torch.float32"):
        rk.functional.bn_act(X[:, :4], **BN, residual=X[:, :4].half())


@pytest.mark.native
def test_named_backend_says_why_not(monkeypatch):
    with rk.use_backend("cpu"), pytest.raises(rk.BackendError, match="cpu: takes .* got torch.float64"):
        rk.functional.grouped_conv2d(X.double(), W.double(), groups=4)
    monkeypatch.delattr(rk.backends.cpu, "grouped_conv2d_backward")
    rk.backends.forget()
    with rk.use_backend("cpu"), pytest.raises(rk.BackendError, match="cpu: has no grouped_conv2d_backward"):
        rk.functional.grouped_conv2d(X, W.clone().requires_grad_(), groups=4)  # before the forward, not after it
    rk.backends.forget()
    with pytest.raises(ValueError, match="use_backend: expected names among auto, cuda, triton, cpu, aten, reference"):
        with rk.use_backend("cudnn"):
            pass


PROBLEM = ConvProblem.parse("n2_c4_h5_g2")
RAW = {
    "grouped_conv2d": {1: torch.zeros(4, 1, 3, 3), 3: [0, 1], 4: [-1, 0], 5: [1, 1, 1], 6: 3},
    "grouped_conv2d_backward": {0: torch.zeros(2, 4, 4, 5)},
    "grouped_conv2d_affine_act": {2: torch.zeros(3), 3: torch.zeros(4).double(), 8: "tanh"},
    "grouped_conv2d_affine_act_backward": {0: torch.zeros(1), 1: torch.zeros(2, 4, 5, 6), 4: torch.zeros(5)},
    "grouped_conv2d_stats": {0: torch.zeros(2, 4, 5)},
    "bn_stats": {0: torch.zeros(4)},
    "affine_act": {1: torch.zeros(1), 3: torch.zeros(2, 4, 5, 4), 4: ""},
    "bn_act_reduce": {0: torch.zeros(2, 4, 5, 5).half(), 4: torch.zeros(4, 1), 6: torch.zeros(2, 4, 5)},
    "affine_act_backward": {7: torch.zeros(2, 4), 8: "silu"},
    "bn_act": {1: torch.zeros(3), 3: torch.zeros(4), 7: "silu"},
    "grouped_conv2d_bn_act": {0: torch.zeros(1, 4, 1, 1), 2: torch.zeros(3), 4: torch.zeros(4), 11: "none"},
}


@pytest.mark.parametrize("op", cases.CASES)
def test_raw_ops_check_their_arguments(op):
    """torch.ops.* are open to anyone: each wrong argument raises before anything runs, on fakes as well."""
    good = cases.make(op, PROBLEM, integers=True)
    for position, wrong in RAW[op].items():
        args = (*good[:position], wrong, *good[position + 1 :])
        for each in (args, tuple(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args)):
            with pytest.raises((ValueError, TypeError), match="expected"):
                getattr(torch.ops.resnext_kernels, op)(*each, "reference")
    with pytest.raises(ValueError, match="backend: expected names among"):
        getattr(torch.ops.resnext_kernels, op)(*good, "nonsense")


TEXTS = {
    "c128": "at least channels and height",
    "c8_h8_x9": "got 'x9'",
    "c8_h8_g3": "groups: expected",
    "c8_h8_g0": "groups: expected",
}


@pytest.mark.parametrize("text", TEXTS)
def test_problem_text_is_checked(text):
    with pytest.raises(ValueError, match=TEXTS[text]):
        ConvProblem.parse(text)
