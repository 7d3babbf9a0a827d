"""Swapped models of timm and torchvision against the originals: block by block on captured tensors, then whole."""

import copy
import statistics

import pytest
import timm
import torch
import torchvision
from torch import nn

import resnext_kernels as rk
from resnext_kernels import swapping

MODELS = [
    "timm resnext50_32x4d",
    "timm regnety_016",
    "timm seresnext50_32x4d",
    "timm resnest50d",
    "timm skresnext50_32x4d",
    "torchvision resnext101_32x8d",
    "torchvision regnet_x_3_2gf",
]


def build(name):
    library, name = name.split()
    torch.manual_seed(0)
    model = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def relative_error(mine, exact):
    return float((mine.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def captured(model, names, x):
    """name -> (input, gradient of the output) of the blocks in one training step."""
    inputs, grads = {}, {}

    def note(module, args, output, name):
        inputs[name] = args[0].detach()
        output.register_hook(lambda grad: grads.__setitem__(name, grad.detach()))

    handles = [
        model.get_submodule(name).register_forward_hook(lambda *a, name=name: note(*a, name=name)) for name in names
    ]
    model(x).square().mean().backward()
    for handle in handles:
        handle.remove()
    return {name: (inputs[name], grads[name]) for name in names}


def run_block(block, x, grad, memory_format=torch.contiguous_format):
    """Output and gradients of a copy of the block, as its statistics change."""
    block = copy.deepcopy(block).to(memory_format=memory_format)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    y = block(x)
    return [y.detach(), *torch.autograd.grad(y, (x, *block.parameters()), grad)]


@pytest.mark.parametrize("name", MODELS)
def test_every_block_and_the_whole_model(name):
    model, x = build(name).train(), torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    swapped, wide = rk.swap(copy.deepcopy(model)), copy.deepcopy(model).double()
    assert list(swapped.state_dict()) == list(model.state_dict())
    names = list(swapping.plan(model).blocks)
    assert names and not swapping.plan(swapped).blocks
    tensors = captured(copy.deepcopy(model), names, x)
    ratios = [
        check_block(*(m.get_submodule(block) for m in (model, swapped, wide)), *tensors[block]) for block in names
    ]
    assert statistics.median(ratios) <= 1.5
    check_whole(model, x)
    rk.restore(swapped)
    assert [type(m) for m in swapped.modules()] == [type(m) for m in model.modules()]


def check_block(original, swapped, wide, x, grad):
    """In float64 the same to 8 digits; returns float32's error over that of the worse eager layout.

    Single results of a block may cancel, down to a gradient of zero for a bias before BatchNorm, and then have few
    digits or none: in float64 they are held to the size of the block's other gradients, in float32 their median counts.
    """
    exact = run_block(wide, x.double(), grad.double())
    with rk.use_backend("reference"):
        same = run_block(copy.deepcopy(swapped).double(), x.double(), grad.double())
        mine = run_block(swapped, x, grad)
    size = max(float(truth.abs().max()) for truth in exact[1:])
    torch.testing.assert_close(same[0], exact[0], rtol=1e-8, atol=1e-8 * float(exact[0].abs().max()))
    for result, truth in zip(same[1:], exact[1:], strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-8, atol=1e-8 * size)
    eager = [run_block(original, x, grad, layout) for layout in (torch.contiguous_format, torch.channels_last)]
    errors = [statistics.median(map(relative_error, results, exact)) for results in (mine, *eager)]
    return errors[0] / (max(errors[1:]) + 1e-7)


def smooth(model):
    """A copy with SiLU in the place of every ReLU."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return model


def check_whole(model, x):
    """Training and evaluation outputs of the model, gradients of its smooth copy, against the worse eager layout.

    A ReLU whose input rounding carries across zero changes every gradient before it by a part in a hundred, in eager as
    in the swapped model: the errors of gradients through many of them say which kinks were crossed, nothing else.
    """
    compare_whole(model, x, outputs)
    compare_whole(smooth(model), x, gradients)


def outputs(model, x):
    with torch.no_grad():
        return [model(x), model.eval()(x)]


def gradients(model, x):
    model(x).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def compare_whole(model, x, results):
    exact = results(copy.deepcopy(model).double(), x.double())

    def errors(model, backend, layout=torch.contiguous_format):
        model = copy.deepcopy(model).to(memory_format=layout)
        with rk.use_backend(backend):
            got = [
                relative_error(*pair)
                for pair in zip(results(model, x.contiguous(memory_format=layout)), exact, strict=True)
            ]
        return got if results is outputs else [statistics.median(got)]

    eager = [errors(model, "aten", layout) for layout in (torch.contiguous_format, torch.channels_last)]
    swapped = rk.swap(copy.deepcopy(model))
    for backend in ("reference", "cpu,aten"):
        for mine, worse in zip(errors(swapped, backend), map(max, *eager), strict=True):
            assert mine <= 1.5 * worse + 2e-7


def test_two_photographs():
    """A real picture through a real model, forward and backward."""
    from sklearn.datasets import load_sample_images

    pictures = torch.stack([torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images])
    x = nn.functional.interpolate(pictures.double() / 255, size=(224, 224), mode="area")
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    model = build("torchvision resnext50_32x4d")
    check_whole(model, x.float())
    with rk.use_backend("cpu", "aten"), torch.no_grad(), rk.backends.record() as ran:
        rk.swap(model).eval()(x.float())
    assert sum(op == "grouped_conv2d_affine_act" for op, _, _ in ran) == 16
    kernels = {name for op, _, name in ran if op == "grouped_conv2d_affine_act"}
    assert kernels == {"cpu" if rk.available_backends()["cpu"] == "available" else "aten"}
