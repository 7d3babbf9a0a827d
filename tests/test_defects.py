"""The power of the tests: kernels with one seeded defect each, all of which the exact tests or the gates must catch."""

import types

import pytest
import torch

from resnext_kernels import backends
from resnext_kernels.backends import reference
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import verify

PROBLEM = ConvProblem.parse("n2_c16_h9_w10_o8_g4_s2")


def dropped_halo(x, weight, bias, stride, padding, dilation, groups):
    x = torch.nn.functional.pad(x[:, :, :-1], (0, 0, 0, 1))
    return reference.grouped_conv2d(x, weight, bias, stride, padding, dilation, groups)


def group_off_by_one(x, weight, bias, stride, padding, dilation, groups):
    x = x.roll(x.shape[1] // groups, 1)
    return reference.grouped_conv2d(x, weight, bias, stride, padding, dilation, groups)


def transposed_taps(x, weight, bias, *conv):
    return reference.grouped_conv2d(x, weight.transpose(2, 3), bias, *conv)


def wrong_phase_of_stride(x, weight, bias, *conv):
    return reference.grouped_conv2d(x.roll(1, 3), weight, bias, *conv)


def unwritten_tail(x, weight, bias, *conv):
    z = reference.grouped_conv2d(x, weight, bias, *conv)
    z[..., -1] = torch.nan
    return z


def forgotten_bias(x, weight, bias, *conv):
    return reference.grouped_conv2d(x, weight, None, *conv)


def dgrad_without_flip(grad, x, weight, *rest):
    dx, _, _ = reference.grouped_conv2d_backward(grad, x, weight.flip(2, 3), *rest)
    return dx, *reference.grouped_conv2d_backward(grad, x, weight, *rest)[1:]


def wgrad_of_one_image(grad, x, weight, *rest):
    dx, _, db = reference.grouped_conv2d_backward(grad, x, weight, *rest)
    return dx, reference.grouped_conv2d_backward(grad[:1], x[:1], weight, *rest)[1], db


def mask_of_the_wrong_sign(grad_output, z, scale, shift, mean, rstd, y, activation):
    return reference.bn_act_reduce(grad_output, z, -scale, shift, mean, rstd, y, activation)


def reduce_without_mean(grad_output, z, scale, shift, mean, rstd, y, activation):
    return reference.bn_act_reduce(grad_output, z, scale, shift, torch.zeros_like(mean), rstd, y, activation)


def prologue_fills_the_halo_with_c(grad_output, z, scale, shift, a, b, c, x, weight, *rest):
    dx, dw = reference.grouped_conv2d_affine_act_backward(grad_output, z, scale, shift, a, b, c, x, weight, *rest)
    return dx, dw + c.abs().max()


def prologue_drops_b(grad_output, z, scale, shift, a, b, c, *rest):
    return reference.grouped_conv2d_affine_act_backward(grad_output, z, scale, shift, a, 0 * b, c, *rest)


def swallowed_residual(z, scale, shift, residual, activation):
    return reference.affine_act(z, scale, shift, None, activation)


def shift_before_scale(z, scale, shift, residual, activation):
    return reference.affine_act(z, scale, shift * scale, residual, activation)


def residual_gradient_not_masked(grad_output, *rest):
    return reference.affine_act_backward(grad_output, *rest)[0], grad_output.clone()


def invents_a_bias(x, weight, bias, *conv):
    z = reference.grouped_conv2d(x, weight, bias, *conv)
    return z + 1 if bias is None else z


def invents_a_residual(z, scale, shift, residual, activation):
    y = reference.affine_act(z, scale, shift, residual, activation)
    return y + 1 if residual is None else y


def reduce_masks_from_z_alone(grad_output, z, scale, shift, mean, rstd, y, activation):
    return reference.bn_act_reduce(grad_output, z, scale, shift, mean, rstd, None, activation)


def backward_masks_from_z_itself(grad_output, z, scale, shift, a, b, c, y, *rest):
    return reference.affine_act_backward(grad_output, z, scale, shift, a, b, c, z if y is None else y, *rest)


def of_another_dtype(*args):
    return reference.grouped_conv2d(*args).double()


def of_another_layout(*args):
    return reference.grouped_conv2d(*args).contiguous(memory_format=torch.channels_last)


def empty_result(x, *rest):
    return x.new_empty(0)


DEFECTS = {
    "grouped_conv2d": (dropped_halo, group_off_by_one, transposed_taps, wrong_phase_of_stride,
                       unwritten_tail, forgotten_bias, invents_a_bias, of_another_dtype, of_another_layout,
                       empty_result),
    "grouped_conv2d_backward": (dgrad_without_flip, wgrad_of_one_image),
    "bn_act_reduce": (mask_of_the_wrong_sign, reduce_without_mean, reduce_masks_from_z_alone),
    "grouped_conv2d_affine_act_backward": (prologue_fills_the_halo_with_c, prologue_drops_b),
    "affine_act": (swallowed_residual, shift_before_scale, invents_a_residual),
    "affine_act_backward": (residual_gradient_not_masked, backward_masks_from_z_itself),
}  # fmt: skip
PAIRS = [(op, defect) for op, defects in DEFECTS.items() for defect in defects]


@pytest.fixture
def broken(monkeypatch):
    """Makes a backend named "broken" whose one op is the given function."""

    def make(op, function):
        module = types.SimpleNamespace(NAME="broken", unsupported_reasons=lambda *_: [], **{op: function})
        monkeypatch.setitem(backends._BY_NAME, "broken", module)
        backends.forget()

    yield make
    backends.forget()


@pytest.mark.parametrize("op, defect", PAIRS, ids=lambda v: getattr(v, "__name__", v))
def test_defect_is_caught(broken, op, defect):
    broken(op, defect)
    assert exact.mismatch(op, PROBLEM, "broken") is not None
    assert not verify(op, PROBLEM, "broken").passed


# Small integers fit in bfloat16 and have exact means: only the gates can see these.
def low_precision_accumulator(x, weight, bias, *conv):
    first = reference.grouped_conv2d(x, weight * (torch.arange(3) < 1), None, *conv).bfloat16()
    rest = reference.grouped_conv2d(x, weight * (torch.arange(3) >= 1), bias, *conv).bfloat16()
    return (first + rest).to(x.dtype)


def test_low_precision_accumulator_is_caught(broken):
    broken("grouped_conv2d", low_precision_accumulator)
    assert not verify("grouped_conv2d", PROBLEM, "broken").passed


def naive_variance(z):
    values, count = z.float(), z.numel() // z.shape[1]
    mean = values.sum((0, 2, 3)) / count
    return mean, values.square().sum((0, 2, 3)) - count * mean.square()


def test_naive_variance_is_caught(broken, monkeypatch):
    broken("bn_stats", naive_variance)
    case = cases.CASES["bn_stats"]
    monkeypatch.setitem(cases.CASES, "bn_stats", lambda *args: (case(*args)[0] + 100,))
    assert not verify("bn_stats", ConvProblem.parse("n4_c8_h28_g2"), "broken").passed


def test_correct_kernel_passes(broken):
    broken("grouped_conv2d", reference.grouped_conv2d)
    assert exact.mismatch("grouped_conv2d", PROBLEM, "broken", oracle="aten") is None
    assert verify("grouped_conv2d", PROBLEM, "broken").passed
