"""Which blocks swap knows, those of the user, and the modules of the package."""

import copy
from collections import Counter
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from swapped import X, assert_same, ops_of, step, tiny
from torch import nn

import resnext_kernels as rk
from resnext_kernels import swapping


@pytest.mark.parametrize("model, blocks, convs", [
    (lambda: tiny(norm_layer=partial(nn.GroupNorm, 4)), 0, 4),
    (lambda: timm.create_model("mixnet_s"), None, 13),
    (lambda: timm.layers.ConvNormAct(8, 8, 3, groups=2, apply_norm=False), 0, 1),
], ids=["group norm", "mixed convolutions", "no norm"])  # fmt: skip
def test_what_the_view_cannot_fuse_becomes_a_grouped_conv2d(model, blocks, convs):
    model = model().eval()
    todo = swapping.plan(model)
    assert len(todo.convs) == convs and blocks in (None, len(todo.blocks))
    swapped = rk.swap(copy.deepcopy(model))
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    x = torch.randn(2, channels, 64, 64)
    with rk.use_backend("reference"), torch.no_grad(), rk.backends.record() as ran:
        torch.testing.assert_close(swapped(x), model(x), rtol=1e-3, atol=1e-4)
    counts = Counter(op for op, _, _ in ran)
    assert counts["grouped_conv2d"] == convs
    assert counts["grouped_conv2d_affine_act"] == sum(map(len, todo.blocks.values()))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.norm(self.conv(x))
        assert y.shape[1] == 4
        return self.act(y)


def test_block_may_keep_state_and_read_shapes(monkeypatch):
    monkeypatch.setattr(swapping, "_registered", {})
    rk.register_adapter(Counting, conv="conv", norm="norm", act="act")
    model, x = Counting(), torch.randn(2, 4, 8, 8)
    swapped = rk.swap(copy.deepcopy(model))
    with rk.use_backend("reference"):
        torch.testing.assert_close(swapped(x), model(x))
    assert swapped.calls == 1 and swapped.norm.num_batches_tracked == 1


def test_quantisable_classes_are_left_alone():
    model = torchvision.models.quantization.resnext101_32x8d(weights=None)
    todo = swapping.plan(model)
    assert not todo.blocks and not todo.convs and len(todo.left) == 33
    assert set(todo.left.values()) == {"belongs to a module that is made for quantisation"}


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, groups=1)
        self.mix = nn.Conv2d(8, 8, 3, groups=2, bias=False)
        self.normalise = nn.BatchNorm2d(8)
        self.gate = nn.SiLU()

    def forward(self, x):
        return self.gate(self.normalise(self.mix(self.first(x)))).mean((2, 3))


def test_registered_adapter(monkeypatch):
    monkeypatch.setattr(swapping, "_registered", {})
    torch.manual_seed(0)
    model = Custom().double()
    assert swapping.plan(model).convs == ["mix"]
    rk.register_adapter(Custom, conv="mix", norm="normalise", act="gate")
    swapped = rk.swap(copy.deepcopy(model))
    assert isinstance(swapped, Custom) and isinstance(swapped, swapping.Swapped)
    with rk.use_backend("reference"):
        assert ops_of(lambda: swapped(X)) == {"grouped_conv2d_stats": 1, "affine_act": 1}
        assert_same(step(swapped), step(model))
    with pytest.raises(TypeError, match="block: expected a subclass of nn.Module"):
        rk.register_adapter("Custom", conv="a", norm="b", act="c")


@pytest.mark.parametrize(
    "norm_layer", [nn.BatchNorm2d, torchvision.ops.FrozenBatchNorm2d, lambda c: nn.GroupNorm(2, c)]
)
@pytest.mark.parametrize("activation", ["relu", "silu", "identity"])
def test_grouped_conv_bn_act_module(swap_backend, activation, norm_layer):
    torch.manual_seed(0)
    module = rk.GroupedConvBNAct2d(3, 12, stride=2, groups=3, activation=activation, norm_layer=norm_layer).double()
    y = module(X)
    expected = module.act(copy.deepcopy(module.bn)(F.conv2d(X, module.conv.weight, None, 2, 1, 1, 3)))
    torch.testing.assert_close(y, expected)
    assert list(module._modules) == ["conv", "bn", "act"]
    assert swapping.plan(module) == swapping.Plan({}, [], {})


def test_grouped_conv2d_module(swap_backend):
    torch.manual_seed(0)
    for options in (dict(padding=1), dict(padding="same"), dict(padding=1, padding_mode="circular"), dict(bias=False)):
        module = rk.GroupedConv2d(3, 6, 3, groups=3, **options).double()
        theirs = nn.Conv2d(3, 6, 3, groups=3, **options).double()
        theirs.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(X), theirs(X))


def test_explain_lists_the_layers():
    model = timm.create_model("resnext50_32x4d")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for swapped in (False, True):
        if swapped:
            rk.swap(model)
        with rk.use_backend("cpu", "aten"):
            rows = rk.explain(model, (2, 3, 224, 224), training=False, memory_format=torch.channels_last)
        assert len({row.layer for row in rows}) == len(rows) == 16
        assert {row.problem.layout for row in rows} == {"nhwc"}
        assert {row.op for row in rows} == {"grouped_conv2d_affine_act"}
        if rk.available_backends()["cpu"] == "available":
            assert {row.backend for row in rows} == {"cpu"}
        assert rows[0].swapped == ("in layer1.0" if swapped else "no; swap fuses it in layer1.0")
        assert "layer4.2.conv2" in str(rows) and rows.to_dict()[0]["problem"].startswith("n2_c128_h56")
    rows = rk.explain(model, (2, 3, 64, 64))
    assert Counter(row.op for row in rows)["grouped_conv2d_affine_act_backward"] == 16
    assert {row.backend for row in rows} == {"aten"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
