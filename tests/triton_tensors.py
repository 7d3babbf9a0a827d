"""Tensors that the tests in triton's interpreter share."""

import torch

from resnext_kernels.testing import cases


def backward_tensors(problem):
    """Integers: x, weight, dz."""
    generator = torch.Generator().manual_seed(0)
    shapes = (problem.n, problem.c_in, problem.h, problem.w), problem.output_shape
    x, dz = (
        torch.randint(-3, 4, shape, generator=generator).to(problem.dtype).to(memory_format=torch.channels_last)
        for shape in shapes
    )  # fmt: skip
    weight = torch.randint(-2, 3, (problem.c_out, problem.c_in // problem.groups, *problem.kernel), generator=generator)
    return x, weight.to(problem.dtype), dz


def expected_dw(problem, x, weight, dz):
    """Of float64, rounded."""
    conv = problem.stride, problem.padding, problem.dilation, problem.groups
    return torch.nn.grad.conv2d_weight(x.double(), weight.shape, dz.double(), *conv).to(weight.dtype)


def bn_case(problem, activation):
    """(The gradient of the activation, what _wgrad takes of BatchNorm): small integers and halves, c nowhere 0."""
    grad, z, *vectors = cases.make("affine_act_backward", problem, integers=True, activation=activation)[:7]
    return grad, (z, *vectors[:-1], vectors[-1].abs() + 1, activation)


def amid_nan(tensor):
    margin = 4096
    memory = torch.full((tensor.numel() + 2 * margin,), torch.nan, dtype=tensor.dtype)
    return memory[margin : margin + tensor.numel()].as_strided(tensor.shape, tensor.stride(), margin).copy_(tensor)
