"""Swapped models with BatchNorm of every class and state, frozen, tied, parametrised and replaced parts."""

import pytest
import torch
import torchvision
from swapped import X, assert_same, ops_of, pair, step, tiny
from torch import nn

import resnext_kernels as rk


def outcome(model):
    """The shape of the output, or the error: some releases refuse to synchronise CPU tensors."""
    try:
        return model(X).shape
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("when", ["before", "after"])
def test_sync_batch_norm_conversion(when):
    """A converted norm talks to other processes in training: the block leaves it to itself."""
    model, swapped = tiny().double(), tiny().double()
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    model.eval(), swapped.eval()
    swapped = rk.swap(convert(swapped)) if when == "before" else convert(rk.swap(swapped))
    with rk.use_backend("reference"):
        assert ops_of(lambda: swapped(X))["grouped_conv2d"] == 4
        torch.testing.assert_close(swapped(X), model(X))
        assert set(ops_of(lambda: outcome(swapped.train()))) <= {"grouped_conv2d"}
        assert outcome(swapped) == outcome(convert(model).train())


NORMS = {
    "cumulative momentum": dict(momentum=None),
    "no running statistics": dict(track_running_stats=False),
    "large eps": dict(eps=1e-3),
    "no momentum": dict(momentum=0.0),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_batch_norm_variants(swap_backend, norm, training):
    model, swapped = pair(norm_layer=lambda channels: nn.BatchNorm2d(channels, **NORMS[norm]))
    for each in (model, swapped):
        each.train()(X)
        each.train(training)
    assert_same(step(swapped), step(model))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(swapped.get_buffer(name), buffer)


@pytest.mark.parametrize("without", [("bias",), ("weight", "bias")])
def test_batch_norm_not_affine(swap_backend, without):
    model, swapped = tiny().double(), tiny().double()
    for each in (model, swapped):
        for module in list(each.modules()):
            if isinstance(module, nn.BatchNorm2d):
                for name in without:
                    setattr(module, name, None)
    assert_same(step(rk.swap(swapped)), step(model))


@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_frozen_batch_norm(swap_backend, eps):
    model, swapped = pair(norm_layer=lambda channels: torchvision.ops.FrozenBatchNorm2d(channels, eps))
    for each in (model, swapped):
        torch.manual_seed(2)
        for module in each.modules():
            if isinstance(module, torchvision.ops.FrozenBatchNorm2d):
                module.running_mean.normal_(), module.running_var.uniform_(0.5, 2), module.weight.uniform_(0.5, 1)
    assert_same(step(swapped), step(model))
    with torch.no_grad():
        ran = ops_of(lambda: swapped(X))
    # float64 is not for the cpu kernel: there all runs as it was, by PyTorch
    assert ran["grouped_conv2d_affine_act"] == 4


def test_batch_norm_in_evaluation_within_a_training_model(swap_backend):
    model, swapped = pair()
    for each in (model, swapped):
        for block in (each.layer1[0], each.layer3[0]):
            block.bn2.eval(), block.bn3.eval()
    assert_same(step(swapped), step(model))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(swapped.get_buffer(name), buffer)


def test_frozen_parameters(swap_backend):
    model, swapped = pair()
    for each in (model, swapped):
        for parameter in [*each.conv1.parameters(), *each.bn1.parameters(), *each.layer1.parameters()]:
            parameter.requires_grad_(False)
        each.layer2[0].conv2.weight.requires_grad_(False)
        each.layer3[0].bn2.bias.requires_grad_(False)
    assert_same(step(swapped), step(model))


def test_tied_weights_and_reuse(swap_backend):
    model, swapped = pair(layers=(2, 1, 1, 1))
    for each in (model, swapped):
        each.layer1[1].conv2.weight = each.layer1[0].conv2.weight
        each.layer1.append(each.layer1[1])
    assert_same(step(swapped), step(model))


def test_parametrizations(swap_backend):
    model, swapped = tiny().double(), tiny().double()
    for each in (model, swapped):
        torch.manual_seed(3)
        nn.utils.parametrizations.weight_norm(each.layer1[0].conv2)
    rk.swap(swapped)
    torch.manual_seed(3), nn.utils.parametrizations.weight_norm(model.layer2[0].conv2)
    torch.manual_seed(3), nn.utils.parametrizations.weight_norm(swapped.layer2[0].conv2)
    assert_same(step(swapped), step(model))


def test_replaced_children(swap_backend):
    """The block looks at its children anew in every call."""
    model, swapped = pair()
    for each in (model, swapped):
        torch.manual_seed(4)
        width = each.layer1[0].bn2.num_features
        each.layer1[0].bn2 = nn.GroupNorm(4, width).double()
        each.layer2[0].relu = nn.GELU()
        each.layer3[0].conv2 = nn.Conv2d(128, 128, 3, 2, 1, bias=False).double()
        each.layer4[0].bn3 = nn.Identity()
    assert_same(step(swapped), step(model))
