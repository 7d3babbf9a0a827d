"""PyTorch's conventions, each for a module of ours, a swapped block and a swapped single convolution."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import resnext_kernels as rk
from resnext_kernels.testing import cases


def swapped_block():
    return rk.swap(torchvision.models.resnet.Bottleneck(16, 4, groups=4, base_width=64))


def single_convolution():
    return rk.swap(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=4)))


def own_module():
    return rk.GroupedConvBNAct2d(16, 16, groups=4, activation="silu")


SUBJECTS = {"own module": own_module, "swapped block": swapped_block, "single convolution": single_convolution}


@pytest.fixture(params=SUBJECTS)
def subject(request):
    torch.manual_seed(0)
    return SUBJECTS[request.param]()


@pytest.fixture(params=["reference", "cpu,aten"], autouse=True)
def backend(request):
    torch.compiler.reset()
    with rk.use_backend(request.param):
        yield request.param


def image(n=2, h=9, w=10, **options):
    return torch.randn(n, 16, h, w, generator=torch.Generator().manual_seed(1), **options)


def plain(subject):
    """The same module on plain PyTorch."""
    subject = copy.deepcopy(subject)

    def run(*args):
        with rk.use_backend("aten"):
            return subject(*args)

    run.module = subject
    return run


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_grad_scaler(subject, dtype):
    theirs, scaler = plain(subject), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(subject.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=dtype):
        y, expected = subject(image()), theirs(image())
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    scaler.scale(y.float().square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(p.grad.dtype == p.dtype == torch.float32 and p.isfinite().all() for p in subject.parameters())


@pytest.mark.parametrize("model_layout", cases.FORMATS)
@pytest.mark.parametrize("input_layout", cases.FORMATS)
def test_memory_formats(subject, model_layout, input_layout):
    """The output and the input's gradient have the format of the input."""
    subject = subject.to(memory_format=cases.FORMATS[model_layout])
    x = image().contiguous(memory_format=cases.FORMATS[input_layout]).requires_grad_()
    y, expected = subject(x), plain(subject)(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    (dx,) = torch.autograd.grad(y.sum(), x)
    if model_layout == input_layout:  # else PyTorch's own 1x1 convolutions choose
        assert all(t.is_contiguous(memory_format=cases.FORMATS[input_layout]) for t in (y, dx))


@pytest.mark.parametrize("training", [True, False])
def test_compile_with_dynamic_sizes(subject, training):
    compiled = torch.compile(subject.train(training), fullgraph=True, dynamic=True, backend="aot_eager")
    for n, h, w in ((2, 9, 10), (3, 7, 8), (2, 12, 12)):
        x = image(n, h, w)
        expected = plain(subject)(x)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)


def test_ahead_of_time_inductor(subject, backend, tmp_path):
    """Packaged, loaded and run in Python."""
    if backend == "reference":
        pytest.skip("reference's float64 einsum is not what one packages; cpu,aten is")
    subject, x = subject.eval(), image()
    with torch.no_grad():
        program = torch.export.export(subject, (x,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(x), subject(x), rtol=1e-4, atol=1e-4)


def test_torch_func(subject):
    """grad by functional_call, and vmap over inputs."""
    subject = subject.double().eval()
    parameters, x = dict(subject.named_parameters()), image().double()

    def loss(parameters):
        return torch.func.functional_call(subject, parameters, (x,)).square().sum()

    got = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for mine, theirs in zip(got.values(), expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    batch = torch.stack([x, x + 1])
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(subject)(batch), torch.stack([subject(each) for each in batch]))


def test_double_backward_works_or_says_no(subject):
    subject, x = subject.double(), image().double().requires_grad_()
    (dx,) = torch.autograd.grad(subject(x).square().sum(), x, create_graph=True)
    try:
        (ddx,) = torch.autograd.grad(dx.square().sum(), x)
    except RuntimeError as error:
        assert "use_backend('aten')" in str(error)
    else:
        theirs = plain(subject).module
        with rk.use_backend("aten"):
            (dx,) = torch.autograd.grad(theirs(x).square().sum(), x, create_graph=True)
            torch.testing.assert_close(ddx, torch.autograd.grad(dx.square().sum(), x)[0])


def test_forward_mode_raises_or_is_right(subject):
    subject, x = subject.double().eval(), image().double()
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        try:
            y = subject(dual)
        except RuntimeError as error:
            assert "jvp" in str(error)
        else:
            expected = torch.autograd.forward_ad.unpack_dual(plain(subject)(dual)).tangent
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, expected)


def test_deterministic(subject):
    """The same bits in every run, forward and backward, with deterministic algorithms demanded."""
    torch.use_deterministic_algorithms(True)
    results = []
    for _ in range(3):
        module, x = copy.deepcopy(subject), image().requires_grad_()
        y = module(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, *module.parameters()))))
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


def test_flop_counter(subject):
    counts = []
    for run in (subject, plain(subject)):
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            run(image()).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_inference_mode(subject):
    subject = subject.eval()
    with torch.inference_mode():
        inference = subject(image())
    assert inference.is_inference() and not inference.requires_grad
    torch.testing.assert_close(inference, subject(image()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inference, plain(subject)(image()), rtol=1e-4, atol=1e-4)


def test_no_gradient_where_none_is_wanted(subject):
    for parameter in subject.parameters():
        parameter.requires_grad_(False)
    assert not subject(image()).requires_grad
    x = image().requires_grad_()
    subject(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in subject.parameters())
