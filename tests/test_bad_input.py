"""A table of mistakes and the words of the error each must give."""

import pytest
import torch

import resnext_kernels as rk

X, W = torch.zeros(1, 8, 5, 5), torch.zeros(4, 2, 3, 3)
MISTAKES = {
    "input is 3-d": (dict(input=X[0]), ValueError, r"input: expected 4 dimensions .* got shape \(8, 5, 5\)"),
    "weight of other groups": (
        dict(groups=2),
        ValueError,
        r"weight: expected shape \(C_out, C_in/groups, kH, kW\) = \(4, 4, 3, 3\), got \(4, 2, 3, 3\)",
    ),
    "groups do not divide": (dict(groups=3), ValueError, "groups: expected a positive divisor of C_in = 8"),
    "groups of zero": (dict(groups=0), ValueError, "groups: expected a positive divisor"),
    "weight dtype": (dict(weight=W.half()), TypeError, "weight: expected dtype torch.float32"),
    "integer input": (dict(input=X.int(), weight=W.int()), TypeError, "input: expected dtype float64, float32"),
    "bias length": (dict(bias=torch.zeros(3)), ValueError, r"bias: expected shape \(C_out,\) = \(4,\), got \(3,\)"),
    "stride of zero": (dict(stride=0), ValueError, "stride: expected two integers >= 1"),
    "three paddings": (dict(padding=(1, 1, 1)), ValueError, "padding: expected an int or a pair"),
    "negative padding": (dict(padding=-1), ValueError, "padding: expected two integers >= 0"),
    "dilation of zero": (dict(dilation=0), ValueError, "dilation: expected two integers >= 1"),
    "image too small": (dict(dilation=3), ValueError, "input: expected H and W of at least"),
    "other device": (dict(weight=W.to("meta")), ValueError, "weight: expected device cpu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained(mistake):
    changes, error, words = MISTAKES[mistake]
    with pytest.raises(error, match=words):
        rk.functional.grouped_conv2d(**{"input": X, "weight": W, "groups": 4, **changes})


def test_named_backend_says_why_not():
    with rk.use_backend("cpu"), pytest.raises(rk.BackendError, match="cpu: takes float32, got torch.float16"):
        rk.functional.grouped_conv2d(X.half(), W.half(), groups=4)
    with pytest.raises(ValueError, match="use_backend: expected names among auto, cpu, aten, reference"):
        with rk.use_backend("cudnn"):
            pass
