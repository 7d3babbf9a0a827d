"""swap and restore: everything that a model was stays, and the blocks run fused."""

import copy
import pickle
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from swapped import X, assert_same, ops_of, pair, step, tiny
from torch import nn

import resnext_kernels as rk
from resnext_kernels import swapping


@pytest.mark.parametrize("training", [True, False])
def test_output_gradients_and_buffers(swap_backend, training):
    model, swapped = pair()
    for each in (model, swapped):
        each.train(training)
    assert_same(step(swapped), step(model))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(swapped.get_buffer(name), buffer)


def test_the_blocks_run_fused():
    """In training also BN1 + ReLU and BN3 + add + ReLU of every block."""
    _, swapped = pair()
    with rk.use_backend("reference"):
        ran = ops_of(lambda: swapped.train()(X))
        assert ran == {"grouped_conv2d_stats": 4, "bn_stats": 8, "affine_act": 12}
        with torch.no_grad():
            ran = ops_of(lambda: swapped.eval()(X))
        assert ran == {"grouped_conv2d_affine_act": 4, "affine_act": 8}


def test_plain_pytorch_runs_the_original_forward():
    model, swapped = pair()
    model.eval(), swapped.eval()
    assert ops_of(lambda: swapped(X)) == {}
    assert torch.equal(swapped(X), model(X))


def test_names_parameters_and_classes_stay():
    model = tiny()
    swapped = copy.deepcopy(model)
    before = dict(swapped.named_parameters())
    assert rk.swap(swapped) is swapped
    assert list(swapped.state_dict()) == list(model.state_dict())
    assert all(parameter is before[name] for name, parameter in swapped.named_parameters())
    assert [type(m).__name__ for m in swapped.modules()] == [type(m).__name__ for m in model.modules()]
    assert repr(swapped) == repr(model)
    assert all(isinstance(b, torchvision.models.resnet.Bottleneck) for b in (swapped.layer1[0], swapped.layer4[0]))
    swapped.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(swapped.state_dict(), strict=True, assign=True)


def test_restore_and_idempotence():
    model, swapped = pair()
    classes = [type(module) for module in swapped.modules()]
    rk.swap(swapped)
    assert [type(module) for module in swapped.modules()] == classes
    assert rk.restore(swapped) is swapped
    assert [type(module) for module in swapped.modules()] == [type(module) for module in model.modules()]
    rk.restore(swapped)
    with rk.use_backend("reference"):
        assert ops_of(lambda: swapped(X)) == {}


def test_filter_and_unsupported():
    model = tiny()
    rk.swap(model, filter_fn=lambda module, name: name.startswith("layer1"))
    assert [name for name, module in model.named_modules() if isinstance(module, swapping.Swapped)] == ["layer1.0"]
    reflecting = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="0: pads with 'reflect'"):
        rk.swap(reflecting, on_unsupported="raise")
    with pytest.warns(UserWarning, match="1 grouped convolutions are left"):
        rk.swap(reflecting, on_unsupported="warn")
    rk.swap(reflecting)
    assert type(reflecting[0]) is nn.Conv2d
    with pytest.raises(ValueError, match="on_unsupported: expected"):
        rk.swap(model, on_unsupported="ignore")


def test_single_convolutions_become_grouped_conv2d(swap_backend):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 8, 5, groups=2)
    ).double()
    swapped = rk.swap(copy.deepcopy(model))
    assert [isinstance(m, rk.GroupedConv2d) for m in swapped] == [False, True, False, False]
    assert ops_of(lambda: swapped(X)) in ({"grouped_conv2d": 1}, {"grouped_conv2d": 1, "grouped_conv2d_backward": 1})
    assert_same(step(swapped), step(model))


# A full backward hook and an activation in place exclude each other in PyTorch itself.
@pytest.mark.parametrize("child, where", [("conv2", "backward"), *((c, w) for c in ("conv2", "bn2", "relu")
                                                                   for w in ("forward", "pre"))])  # fmt: skip
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_on_children_fire(when, child, where):
    """With what they would see in the original: the block runs those parts by themselves."""
    model, swapped = tiny().double(), tiny().double()
    if when == "after":
        rk.swap(swapped)
    seen = ([], [])
    for each, calls in zip((model, swapped), seen, strict=True):
        module = getattr(each.layer2[0], child)

        def note(module, a, b=None, calls=calls):
            value = a if b is None or where == "backward" else b
            calls.append((value[0] if isinstance(value, tuple) else value).detach().clone())

        {"forward": module.register_forward_hook, "pre": module.register_forward_pre_hook,
         "backward": module.register_full_backward_hook}[where](note)  # fmt: skip
    if when == "before":
        rk.swap(swapped)
    with rk.use_backend("reference"):
        assert_same(step(swapped), step(model))
    assert len(seen[0]) == len(seen[1]) > 0
    assert_same(seen[1], seen[0])


def test_global_and_block_hooks_fire():
    _, swapped = pair()
    calls = []
    swapped.layer1[0].register_forward_hook(lambda *_: calls.append("block"))
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    try:
        with rk.use_backend("reference"):
            swapped(X)
    finally:
        handle.remove()
    assert calls.count("block") == 1 and calls.count("BatchNorm2d") == 17


def test_copies():
    model, swapped = pair()
    for clone in (copy.deepcopy(swapped), copy.copy(swapped)):
        with rk.use_backend("reference"):
            assert ops_of(lambda clone=clone: clone(X))["grouped_conv2d_stats"] == 4
    deep = copy.deepcopy(swapped)
    assert deep.layer1[0].conv2.weight is not swapped.layer1[0].conv2.weight
    ema = torch.optim.swa_utils.AveragedModel(swapped)
    ema.update_parameters(swapped)
    with rk.use_backend("reference"):
        torch.testing.assert_close(ema.eval()(X), swapped.eval()(X))


def test_pickle_holds_the_original_classes(tmp_path):
    model, swapped = pair()
    loaded = pickle.loads(pickle.dumps(swapped))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in model.modules()]
    assert isinstance(swapped.layer1[0], swapping.Swapped)
    torch.save(swapped, tmp_path / "model.pt")
    code = f"""
import sys
sys.modules["resnext_kernels"] = None
import torch
print(torch.load({str(tmp_path / "model.pt")!r}, weights_only=False).layer1[0].conv2.groups)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "8", result.stderr


def test_layers_upon_the_swap_are_not_destroyed():
    """Parametrised or copied after swap; restore refuses what it would break."""
    model = rk.swap(nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)))
    nn.utils.parametrizations.weight_norm(model[0])
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    with pytest.raises(ValueError, match="model: expected 0 as swap left it, .* undo that first"):
        rk.restore(model)
    model(x)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(rk.restore(model)[0]) is nn.Conv2d


@pytest.mark.parametrize("child", ["conv2", "bn2", "relu"])
def test_forward_of_an_instance_runs(child):
    """As libraries for offloading and tracing put it there."""
    _, swapped = pair()
    module, calls = getattr(swapped.layer1[0], child), []
    original = module.forward
    module.forward = lambda x: calls.append(child) or original(x)
    with rk.use_backend("reference"):
        swapped(X)
    assert calls


def test_hooks_on_the_parts_of_a_norm_fire():
    block = rk.swap(timm.layers.ConvNormAct(8, 8, 3, groups=2))
    calls = []
    block.bn.drop.register_forward_hook(lambda *_: calls.append("drop"))
    block.bn.act.register_forward_hook(lambda *_: calls.append("act"))
    with rk.use_backend("reference"):
        block(torch.randn(1, 8, 6, 6))
    assert calls == ["drop", "act"]
