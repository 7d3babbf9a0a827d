"""The CUDA gradient of a convolution's input under emulation: plain, and behind the backward of BatchNorm."""

import pytest
import torch
from cuda_problems import PROBLEMS, nhwc
from emulated import modes

from resnext_kernels.backends import cuda, reference
from resnext_kernels.checks import ACTIVATIONS
from resnext_kernels.testing import cases

HALVES = (torch.float16, torch.bfloat16)
REFUSED = {
    "n1_c32_o64_h4_g1": "takes up to 32 channels a group", "n1_c16_h4_g2_p3_s2": "padding of up to 2 * dilation",
    "n1_c16_h4_g2_p2x3": "padding of up to 2 * dilation", "n1_c16_h9_g2_p5x4_d2": "padding of up to 2 * dilation",
    "n1_c16_h9_g2_p3x4_d1x2": "padding of up to 2 * dilation",
    "n1_c16_h9_g2_p4x3_d2x1": "padding of up to 2 * dilation",
    "n1_c8_o16_h5_g8": "even numbers up to 32",
}  # fmt: skip
# Gradients wider than the input, and odd sizes at stride 2, whose last rows and columns no tap reaches, or one does.
TAKEN = [text for text in PROBLEMS if text not in REFUSED] + [
    "n2_c16_h6_w5_g2_p2", "n1_c32_h6_w9_g4_s2", "n3_c16_h9_w6_g2_p0_s2", "n2_c16_h8_w9_g4_p2_s2",
    "n1_c16_h3_w3_g2_p0", "n2_c24_h1_w1_g6_s2", "n1_c8_h5_w7_g1_p0_s2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def kernels(emulated_cuda):
    yield emulated_cuda


class Case:
    """A problem's tensors, all of integers, and what its gradients are."""

    def __init__(self, text, dtype, activation):
        self.problem = nhwc(text, dtype)
        args = cases.make("grouped_conv2d_affine_act_backward", self.problem, integers=True)
        self.grad, *self.bn, x, self.weight = args[:9]
        self.activation, conv = activation, args[9:13]
        self.dx, self.dz = torch.empty_like(x), None
        self.expected_dz = self.grad
        if activation is not None:
            self.dz = torch.empty_like(self.grad)
            self.expected_dz = reference.affine_act_backward(self.grad, *self.bn, None, activation, [True, False])[0]
        mask = [True, False, False]
        self.expected_dx = reference.grouped_conv2d_backward(self.expected_dz, x, self.weight, *conv, mask)[0]
        self.native = cuda._native_conv(self.problem, self.weight.stride())
        self.workspace = torch.empty(self.native.dgrad_workspace(), dtype=torch.uint8)

    def tensors(self):
        """(what is read, what is written)."""
        bn = [] if self.activation is None else self.bn
        return [self.grad, self.weight, *bn], [t for t in (self.dx, self.dz, self.workspace) if t is not None]

    def run(self, write_dz=True):
        for image in (self.dx, self.dz):
            if image is not None:
                image.fill_(float("nan"))
        bn = None
        if self.activation is not None:
            bn = (*(tensor.data_ptr() for tensor in self.bn), ACTIVATIONS.index(self.activation))
        dz = self.dz.data_ptr() if write_dz and self.dz is not None else 0
        images = self.grad.data_ptr(), self.weight.data_ptr(), self.dx.data_ptr()
        self.native.grouped_conv2d_dgrad(*images, bn, dz, self.workspace.data_ptr(), 0, 0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("text", TAKEN)
def test_exact(kernels, text, dtype):
    for activation in (None, "identity", "relu"):
        case = Case(text, dtype, activation)
        assert not case.native.backward_reasons()
        for _ in modes(kernels, text):
            case.run()
            assert torch.equal(case.dx, case.expected_dx)
            assert case.dz is None or torch.equal(case.dz, case.expected_dz)
    case.run(write_dz=False)
    assert torch.equal(case.dx, case.expected_dx) and case.dz.isnan().all()


@pytest.mark.parametrize("text", REFUSED)
def test_reasons(text):
    reasons = cuda._native_conv(nhwc(text, torch.float16), (0, 0, 0, 0)).backward_reasons()
    assert any(REFUSED[text] in reason for reason in reasons)


def test_nothing_beyond_the_tensors(kernels):
    for text in TAKEN[::3]:
        case = Case(text, torch.bfloat16, "relu")
        read, written = case.tensors()
        for tensor in read + written:
            bytes_ = tensor.numel() * tensor.element_size()
            kernels.add_region(tensor.data_ptr(), bytes_, any(tensor is each for each in written))
        try:
            case.run()
        finally:
            kernels.clear_regions()


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("text", ["n1_c128_h40_g32", "n1_c128_h28_g16_s2", "n9_c64_h7_g2", "n1_c128_h28_g4_s2"])
def test_bytes_moved(kernels, text, activation):
    """dy once, with BatchNorm's backward z too; dx and then dz are written once."""
    case = Case(text, torch.float16, activation)
    read, written = case.tensors()
    for tensor in read + written:
        kernels.add_region(tensor.data_ptr(), tensor.numel() * tensor.element_size(), tensor is not case.grad)
    try:
        case.run()
    finally:
        kernels.clear_regions()
    counters, images = kernels.counters(), [case.dx] if activation is None else [case.dx, case.dz]
    assert counters["bytes_stored"] == sum(2 * image.numel() for image in images)
    reads = len(images) * 2 * case.grad.numel()
    vectors = 0 if activation is None else 5 * 4 * case.problem.c_out
    assert reads <= counters["bytes_read_first"] <= 1.001 * reads + case.workspace.numel() + vectors
    assert counters["matrix_cycles"] <= 2 * counters["matrix_phases"]
