"""swap and restore: everything that a model was stays, and the blocks run fused."""

import copy
import io
import pickle
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import resnext_kernels as rk
from resnext_kernels import swapping


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


@pytest.fixture(params=["reference", "cpu,aten"])
def backend(request):
    with rk.use_backend(request.param):
        yield request.param


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


@pytest.mark.parametrize("training", [True, False])
def test_output_gradients_and_buffers(backend, training):
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


def test_single_convolutions_become_grouped_conv2d(backend):
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


def test_torch_fx_and_feature_extraction():
    model, swapped = pair()
    model.eval(), swapped.eval()
    with rk.use_backend("reference"):
        traced = torch.fx.symbolic_trace(swapped)
        torch.testing.assert_close(traced(X), model(X))
        nodes = ["layer1.0.bn2", "layer3.0.relu_1"]
        features = torchvision.models.feature_extraction.create_feature_extractor(swapped, nodes)(X)
        theirs = torchvision.models.feature_extraction.create_feature_extractor(model, nodes)(X)
        for name in nodes:
            torch.testing.assert_close(features[name], theirs[name])


@pytest.mark.parametrize("name", ["resnext50_32x4d", "regnety_002"])
def test_timm_features_only(name):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).double()
    swapped = rk.swap(copy.deepcopy(model))
    model.eval(), swapped.eval()
    with rk.use_backend("reference"), torch.no_grad():
        assert ops_of(lambda: swapped(X))["grouped_conv2d_affine_act"] > 10
        assert_same(swapped(X), model(X))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("choice", ["auto", "cpu,aten", "reference"])
def test_compile_fullgraph(choice, training):
    torch.compiler.reset()
    model, swapped = pair()
    model.train(training), swapped.train(training)
    with rk.use_backend(choice):
        mine = step(torch.compile(swapped, fullgraph=True, backend="aot_eager"))
    assert_same(mine, step(model), rtol=1e-7)


def test_torch_export():
    model, swapped = pair()
    model.eval(), swapped.eval()
    with rk.use_backend("reference"), torch.no_grad():
        program = torch.export.export(swapped, (X,))
    assert any("grouped_conv2d_affine_act" in str(node.target) for node in program.graph.nodes)
    assert set(program.state_dict) <= set(model.state_dict())
    torch.testing.assert_close(program.module()(X), model(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_torch_jit():
    model, swapped = pair()
    model.eval(), swapped.eval()
    with rk.use_backend("reference"), torch.no_grad():
        for scripted in (torch.jit.trace(swapped, X), torch.jit.script(copy.deepcopy(swapped))):
            assert "resnext_kernels" not in str(scripted.inlined_graph)
            torch.testing.assert_close(scripted(X), model(X))
        assert isinstance(swapped.layer1[0], swapping.Swapped)


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
def test_batch_norm_variants(backend, norm, training):
    model, swapped = pair(norm_layer=lambda channels: nn.BatchNorm2d(channels, **NORMS[norm]))
    for each in (model, swapped):
        each.train()(X)
        each.train(training)
    assert_same(step(swapped), step(model))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(swapped.get_buffer(name), buffer)


@pytest.mark.parametrize("without", [("bias",), ("weight", "bias")])
def test_batch_norm_not_affine(backend, without):
    model, swapped = tiny().double(), tiny().double()
    for each in (model, swapped):
        for module in list(each.modules()):
            if isinstance(module, nn.BatchNorm2d):
                for name in without:
                    setattr(module, name, None)
    assert_same(step(rk.swap(swapped)), step(model))


@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_frozen_batch_norm(backend, eps):
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


def test_batch_norm_in_evaluation_within_a_training_model(backend):
    model, swapped = pair()
    for each in (model, swapped):
        for block in (each.layer1[0], each.layer3[0]):
            block.bn2.eval(), block.bn3.eval()
    assert_same(step(swapped), step(model))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(swapped.get_buffer(name), buffer)


def test_frozen_parameters(backend):
    model, swapped = pair()
    for each in (model, swapped):
        for parameter in [*each.conv1.parameters(), *each.bn1.parameters(), *each.layer1.parameters()]:
            parameter.requires_grad_(False)
        each.layer2[0].conv2.weight.requires_grad_(False)
        each.layer3[0].bn2.bias.requires_grad_(False)
    assert_same(step(swapped), step(model))


def test_tied_weights_and_reuse(backend):
    model, swapped = pair(layers=(2, 1, 1, 1))
    for each in (model, swapped):
        each.layer1[1].conv2.weight = each.layer1[0].conv2.weight
        each.layer1.append(each.layer1[1])
    assert_same(step(swapped), step(model))


def test_parametrizations(backend):
    model, swapped = tiny().double(), tiny().double()
    for each in (model, swapped):
        torch.manual_seed(3)
        nn.utils.parametrizations.weight_norm(each.layer1[0].conv2)
    rk.swap(swapped)
    torch.manual_seed(3), nn.utils.parametrizations.weight_norm(model.layer2[0].conv2)
    torch.manual_seed(3), nn.utils.parametrizations.weight_norm(swapped.layer2[0].conv2)
    assert_same(step(swapped), step(model))


def test_activation_checkpointing(backend):
    model, swapped = pair()
    results = []
    for each in (model, swapped):
        x = each.maxpool(each.relu(each.bn1(each.conv1(X))))
        # Without early stop: else the last norm's second update depends on what else the block keeps.
        with torch.utils.checkpoint.set_checkpoint_early_stop(False):
            y = torch.utils.checkpoint.checkpoint(each.layer1, x, use_reentrant=False)
            results.append((y, *torch.autograd.grad(y.square().sum(), list(each.layer1.parameters()))))
    assert_same(results[1], results[0])
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(swapped.get_buffer(name), buffer)


def test_replaced_children(backend):
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


def test_quantisable_classes_are_left_alone():
    model = torchvision.models.quantization.resnext101_32x8d(weights=None)
    todo = swapping.plan(model)
    assert not todo.blocks and not todo.convs and len(todo.left) == 33
    assert set(todo.left.values()) == {"belongs to a module that is made for quantisation"}


def test_onnx_export_runs_the_original_forward():
    model, swapped = pair()
    stream = io.BytesIO()
    with rk.use_backend("reference"):
        torch.onnx.export(swapped.eval().float(), (X.float(),), stream, dynamo=False)
    assert b"resnext_kernels" not in stream.getvalue() and len(stream.getvalue()) > 1000


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
def test_grouped_conv_bn_act_module(backend, activation, norm_layer):
    torch.manual_seed(0)
    module = rk.GroupedConvBNAct2d(3, 12, stride=2, groups=3, activation=activation, norm_layer=norm_layer).double()
    y = module(X)
    expected = module.act(copy.deepcopy(module.bn)(F.conv2d(X, module.conv.weight, None, 2, 1, 1, 3)))
    torch.testing.assert_close(y, expected)
    assert list(module._modules) == ["conv", "bn", "act"]
    assert swapping.plan(module) == swapping.Plan({}, [], {})


def test_grouped_conv2d_module(backend):
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
