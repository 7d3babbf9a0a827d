"""The public functions do what their PyTorch counterparts do, with every choice of arguments."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import resnext_kernels as rk

BACKENDS = ["auto", "cpu,aten", "reference"]
ACTIVATE = {"relu": F.relu, "silu": F.silu, "identity": lambda y: y}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with rk.use_backend(*request.param.split(",")):
        yield request.param


def bn_state(channels=8, dtype=torch.float32):
    torch.manual_seed(1)
    names = ("running_mean", "running_var", "bn_weight", "bn_bias")
    values = torch.randn(channels), torch.rand(channels) + 0.5, torch.rand(channels) + 0.5, torch.randn(channels)
    return {name: value.to(dtype) for name, value in zip(names, values, strict=True)}


def expected(x, weight, state, training, activation="relu", momentum=0.1, eps=1e-5, residual=None):
    z = x if weight is None else F.conv2d(x, weight, None, 1, 1, 1, 2)
    bn = (state["bn_weight"], state["bn_bias"], state["running_mean"], state["running_var"])
    y = torch.batch_norm(z, *bn, training, momentum, eps, False)
    return ACTIVATE[activation](y if residual is None else y + residual)


def ours(x, weight, state, **options):
    if weight is None:
        return rk.functional.bn_act(x, **state, **options)
    return rk.functional.grouped_conv2d_bn_act(x, weight, **state, padding=1, groups=2, **options)


def inputs(with_conv=True, dtype=torch.float32):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 8, 5, 6), torch.randn(8, 4, 3, 3)
    return x.to(dtype), weight.to(dtype) if with_conv else None


@pytest.mark.parametrize("with_conv", [True, False])
@pytest.mark.parametrize("momentum, eps", [(0.1, 1e-5), (0.0, 1e-3), (1.0, 1e-5)])
def test_running_statistics(backend, momentum, eps, with_conv):
    x, weight = inputs(with_conv)
    mine, theirs = bn_state(), bn_state()
    for _ in range(3):
        y = ours(x, weight, mine, training=True, momentum=momentum, eps=eps)
        y_theirs = expected(x, weight, theirs, True, momentum=momentum, eps=eps)
        torch.testing.assert_close(y, y_theirs, rtol=1e-4, atol=1e-5)
    for name, values in mine.items():
        torch.testing.assert_close(values, theirs[name])
    y = ours(x, weight, mine, training=False, eps=0.0)
    torch.testing.assert_close(y, expected(x, weight, theirs, False, eps=0.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_conv", [True, False])
@pytest.mark.parametrize("affine", list(itertools.product([True, False], repeat=2)), ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_optional_vectors(backend, training, affine, with_conv):
    x, weight = inputs(with_conv)
    state = bn_state()
    for name, given in zip(("bn_weight", "bn_bias"), affine, strict=True):
        state[name] = state[name] if given else None
    y = ours(x, weight, state, training=training, momentum=0.0)
    torch.testing.assert_close(y, expected(x, weight, state, training, momentum=0.0), rtol=1e-4, atol=1e-5)
    if training:
        state.update(running_mean=None, running_var=None)
        torch.testing.assert_close(ours(x, weight, state, training=True), y)


@pytest.mark.parametrize("activation", ACTIVATE)
@pytest.mark.parametrize("training", [True, False])
def test_residual_and_its_gradient(backend, training, activation):
    x, _ = inputs(False, torch.float64)
    residual, state = torch.randn_like(x).requires_grad_(), bn_state(dtype=torch.float64)
    x.requires_grad_()
    mine = ours(x, None, state, training=training, activation=activation, residual=residual, momentum=0.0)
    theirs = expected(x, None, state, training, activation, momentum=0.0, residual=residual)
    torch.testing.assert_close(mine, theirs)
    grads = [torch.autograd.grad(y.square().sum(), (x, residual)) for y in (mine, theirs)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("needs", list(itertools.product([True, False], repeat=4)), ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_every_subset_of_gradients(backend, training, needs):
    results = []
    for function in (ours, expected):
        x, weight = inputs(dtype=torch.float64)
        state = bn_state(dtype=torch.float64)
        leaves = [x, weight, state["bn_weight"], state["bn_bias"]]
        for leaf, need in zip(leaves, needs, strict=True):
            leaf.requires_grad_(need)
        y = function(x, weight, state, training=training)
        assert y.requires_grad == any(needs)
        if any(needs):
            y.square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_any_strides(backend, layout):
    """y.sum().backward() hands an expanded gradient of stride 0; formats of x, weight and gradient may differ."""
    x, weight = (v.contiguous(memory_format=layout).requires_grad_() for v in inputs())
    y = ours(x, weight, bn_state(), training=True)
    plain = torch.autograd.grad(y, (x, weight), torch.ones(y.shape), retain_graph=True)
    expanded = torch.autograd.grad(y, (x, weight), torch.ones(()).expand(y.shape), retain_graph=True)
    other = torch.ones(y.transpose(2, 3).shape).transpose(2, 3)
    torch.testing.assert_close(expanded, plain, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(y, (x, weight), other), plain, rtol=1e-5, atol=1e-5)


def test_inputs_are_not_written(backend):
    x, weight = inputs()
    state = bn_state()
    before = {name: value.clone() for name, value in {**state, "x": x, "weight": weight}.items()}
    x.requires_grad_()
    ours(x, weight, state, training=False).square().sum().backward()
    for name, value in {**state, "x": x, "weight": weight}.items():
        assert torch.equal(value, before[name]), name


def test_nan_and_infinity_pass(backend):
    x, weight = inputs()
    x[0, 0, 0, 0], x[1, 0, 2, 2] = float("nan"), float("inf")
    y, theirs = ours(x, weight, bn_state(), training=False), expected(x, weight, bn_state(), False)
    assert torch.equal(y.isnan(), theirs.isnan()) and torch.equal(y.isinf(), theirs.isinf())


def test_negative_running_variance_gives_nan(backend):
    x, weight = inputs()
    state = bn_state()
    state["running_var"][3] = -1
    assert ours(x, weight, state, training=False, activation="identity")[:, 3].isnan().all()


def test_empty_batch(backend):
    x, weight = inputs()
    x, weight, state = x[:0].requires_grad_(), weight.requires_grad_(), bn_state()
    before = {name: value.clone() for name, value in state.items()}
    y = rk.functional.grouped_conv2d(x, weight, padding=1, groups=2)
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert y.shape == (0, 8, 5, 6) and dx.shape == x.shape and torch.equal(dw, torch.zeros_like(weight))
    assert ours(x, weight, state, training=False).shape == y.shape
    for name, value in state.items():
        assert torch.equal(value, before[name]), name


def test_same_bits_with_and_without_grad(backend):
    x, weight = inputs()
    with torch.inference_mode():
        inference = rk.functional.grouped_conv2d(x, weight, padding=1, groups=2)
    assert torch.equal(rk.functional.grouped_conv2d(x, weight.requires_grad_(), padding=1, groups=2), inference)


@pytest.mark.parametrize("layouts", itertools.product([torch.contiguous_format, torch.channels_last], repeat=2))
@pytest.mark.parametrize("case", ["conv", "image", "residual"])
def test_later_calls_of_a_signature(backend, case, layouts):
    """In evaluation the first call leaves a recipe for those of its kind: of other values, in other layouts."""
    x, weight = inputs(case == "conv")
    x, residual = (x.contiguous(memory_format=layout) for layout in layouts)
    options = dict(training=False, residual=residual) if case == "residual" else dict(training=False)
    with torch.no_grad():
        for scale in (1, 2, -3):
            state = {name: value * abs(scale) for name, value in bn_state().items()}
            y = ours(scale * x, weight, state, **options)
            reference = expected(scale * x, weight, state, False, residual=options.get("residual"))
            torch.testing.assert_close(y, reference, rtol=1e-4, atol=1e-5)
            assert y.is_contiguous(memory_format=layouts[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_autocast(backend, training, dtype):
    """The convolution runs in the autocast dtype; BatchNorm's vectors and all gradients keep their own."""
    x, weight = inputs()
    weight.requires_grad_()
    state = bn_state()
    state["bn_weight"].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = ours(x, weight, state, training=training)
        assert rk.functional.grouped_conv2d(x, weight, padding=1, groups=2).dtype == dtype
        assert rk.functional.bn_act(y, **state, residual=x).dtype in (dtype, torch.float32)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32 and state["bn_weight"].grad.dtype == torch.float32
    assert state["running_mean"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_of_batch_norm_vectors(backend, dtype):
    """A model converted whole has its vectors in the low precision too."""
    x, weight = inputs(dtype=dtype)
    state = bn_state(dtype=dtype)
    y = ours(x, weight, state, training=True)
    theirs = expected(x.double(), weight.double(), bn_state(dtype=torch.float64), True)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), theirs, rtol=0.03, atol=0.06)


@pytest.mark.parametrize("stride, padding, dilation", [(2, 1, 1), ((2, 1), (0, 2), (1, 2)), (1, 4, 4)])
def test_conv_arguments(backend, stride, padding, dilation):
    x, weight = torch.randn(2, 6, 11, 12), torch.randn(9, 2, 3, 3)
    y = rk.functional.grouped_conv2d(x, weight, None, stride, padding, dilation, 3)
    torch.testing.assert_close(y, F.conv2d(x, weight, None, stride, padding, dilation, 3))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel, dilation", [(3, 1), ((5, 1), (2, 3)), (1, 1)])
def test_named_paddings(backend, kernel, dilation, padding):
    x, weight = torch.randn(1, 6, 11, 12), torch.randn(6, 2, *(kernel if isinstance(kernel, tuple) else (kernel,) * 2))
    y = rk.functional.grouped_conv2d(x, weight, padding=padding, dilation=dilation, groups=3)
    torch.testing.assert_close(y, F.conv2d(x, weight, None, 1, padding, dilation, 3))


@pytest.mark.parametrize("vectors", [torch.float64, torch.bfloat16, "mixed"], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_vectors_of_any_dtype(backend, training, vectors):
    x, weight = inputs()
    state = bn_state()
    for name, value in state.items():
        mixed = torch.bfloat16 if "running" in name else torch.float64
        state[name] = value.to(mixed if vectors == "mixed" else vectors)
    theirs = {name: value.double() for name, value in state.items()}
    y = ours(x, weight, state, training=training)
    y_theirs = expected(x.double(), weight.double(), theirs, training)
    torch.testing.assert_close(y.double(), y_theirs, rtol=1e-4, atol=1e-4)
    for name, value in state.items():
        torch.testing.assert_close(value.double(), theirs[name], rtol=1e-2, atol=1e-2)


@pytest.mark.native
def test_frozen_batch_norm_with_a_kernel_forward_and_another_backward(monkeypatch):
    rk.backends.forget()
    for op in ("affine_act", "bn_act_reduce", "grouped_conv2d_affine_act_backward"):
        monkeypatch.delattr(rk.backends.cpu, op)
    results = []
    for choice in (("cpu", "aten"), ("aten",)):
        x, weight = (v.requires_grad_() for v in inputs())
        state = bn_state()
        state["bn_weight"].requires_grad_()
        with rk.use_backend(*choice), rk.backends.record() as ran:
            y = ours(x, weight, state, training=False)
            grads = torch.autograd.grad(y.square().sum(), (x, weight, state["bn_weight"]))
        results.append((y, *grads))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-3)
    with rk.use_backend("cpu", "aten"), rk.backends.record() as ran:
        ours(x, weight, state, training=False).sum().backward()
    assert [(op, name) for op, _, name in ran] == [
        ("grouped_conv2d", "cpu"),
        ("affine_act", "aten"),
        ("bn_act_reduce", "aten"),
        ("grouped_conv2d_affine_act_backward", "aten"),
    ]
    rk.backends.forget()


def test_identity_output_may_be_changed_in_place(backend):
    """The mask of identity needs no saved output, with a residual or without."""
    x, _ = inputs(False)
    x.requires_grad_()
    y = ours(x, None, bn_state(), training=True, activation="identity", residual=torch.ones_like(x))
    y.relu_().sum().backward()
    assert x.grad.isfinite().all()


def test_backend_of_forward_is_the_backend_of_backward():
    x, weight = (v.requires_grad_() for v in inputs())
    with rk.use_backend("reference"):
        y = rk.functional.grouped_conv2d(x, weight, padding=1, groups=2)
    with rk.backends.record() as ran:
        y.sum().backward()
    assert [(op, name) for op, _, name in ran] == [("grouped_conv2d_backward", "reference")]
