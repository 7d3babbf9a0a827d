"""Models to swap, and what the tests of swapping look at."""

import copy
from collections import Counter

import torch
import torchvision
from torch import nn

import resnext_kernels as rk


def tiny(seed=0, layers=(1, 1, 1, 1), **options):
    """torchvision's ResNeXt of one block a stage, with BatchNorm that has something to say."""
    torch.manual_seed(seed)
    options = {"groups": 8, "width_per_group": 4, **options}
    model = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(layers), num_classes=10, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pair(**options):
    """(the model, its swapped copy), in float64."""
    model = tiny(**options).double()
    return model, rk.swap(copy.deepcopy(model))


def step(model, x=X):
    """Output and gradients of one training step."""
    y = model(x)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return y, *torch.autograd.grad(y.square().sum(), parameters)


def assert_same(mine, theirs, rtol=1e-9):
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * max(1, float(b.detach().abs().max())))


def ops_of(function):
    with rk.backends.record() as ran:
        function()
    return Counter(op for op, _, _ in ran)
