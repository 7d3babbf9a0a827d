"""Swapped models under compilers, tracers, exporters and checkpointing."""

import copy
import io

import pytest
import timm
import torch
import torchvision
from swapped import X, assert_same, ops_of, pair, step

import resnext_kernels as rk
from resnext_kernels import swapping


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


def test_activation_checkpointing(swap_backend):
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


def test_onnx_export_runs_the_original_forward():
    model, swapped = pair()
    stream = io.BytesIO()
    with rk.use_backend("reference"):
        torch.onnx.export(swapped.eval().float(), (X.float(),), stream, dynamo=False)
    assert b"resnext_kernels" not in stream.getvalue() and len(stream.getvalue()) > 1000
