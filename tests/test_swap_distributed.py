"""Swapped models under DataParallel's replicas, DistributedDataParallel and fully_shard, in one process over gloo."""

import copy

import pytest
import torch
import torch.distributed as dist
import torchvision
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import resnext_kernels as rk
from resnext_kernels import swapping

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model():
    torch.manual_seed(0)
    block = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=10, groups=8, width_per_group=4)


def gradients(module):
    with rk.use_backend("reference"):
        module(X).square().sum().backward()
    return {name.removeprefix("module."): full(p.grad) for name, p in module.named_parameters()}


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def fused_calls(module):
    with rk.use_backend("reference"), rk.backends.record() as ran, torch.no_grad():
        module(X)
    return sum(op in ("grouped_conv2d_stats", "grouped_conv2d_affine_act") for op, _, _ in ran)


@pytest.mark.parametrize("when", ["before", "after"])
def test_distributed_data_parallel(when):
    expected = gradients(model())
    wrapped = (
        DistributedDataParallel(rk.swap(model())) if when == "before" else rk.swap(DistributedDataParallel(model()))
    )
    assert fused_calls(copy.deepcopy(wrapped.module)) == 4
    for name, grad in gradients(wrapped).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-3, atol=1e-3 * float(expected[name].abs().max()))


def test_fully_shard_before_and_after():
    mesh = init_device_mesh("cpu", (1,))
    expected = gradients(model())
    swapped = rk.swap(model())
    for block in (swapped.layer1[0], swapped.layer2[0], swapped):
        fully_shard(block, mesh=mesh)
    assert fused_calls(swapped) == 4
    for name, grad in gradients(swapped).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-3, atol=1e-3 * float(expected[name].abs().max()))
    sharded = model()
    fully_shard(sharded, mesh=mesh)
    todo = swapping.plan(sharded)
    assert not todo.blocks and not todo.convs
    assert set(todo.left.values()) == {"is sharded by fully_shard; swap before it"}
    with pytest.raises(ValueError, match="layer1.0.conv2: is sharded by fully_shard; swap before it"):
        rk.swap(sharded, on_unsupported="raise")


def test_data_parallel_replicas_run_themselves():
    block = rk.swap(model()).eval().layer1[0]
    replica = block._replicate_for_data_parallel()
    replica._modules = {name: copy.deepcopy(child) for name, child in block._modules.items()}
    with torch.no_grad():
        for parameter in replica._modules["conv2"].parameters():
            parameter.zero_()
    x = torch.randn(1, 64, 8, 8)
    with rk.use_backend("reference"), torch.no_grad():
        assert not torch.equal(replica(x), block(x))
        torch.testing.assert_close(replica(x), rk.restore(replica)(x))
