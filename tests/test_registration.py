"""opcheck, gradcheck, compilation and torch.func of every op and public function."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import resnext_kernels as rk
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases


@pytest.fixture
def no_compiled_code():
    """Every test compiles anew: the tests share functions, and dynamo limits how often one is compiled."""
    torch.compiler.reset()


def requiring_grad(args):
    """Floating tensors as leaves that require a gradient."""
    return tuple(a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args)


@pytest.mark.parametrize("layout", cases.FORMATS)
@pytest.mark.parametrize("backend", ["cpu,aten", "reference"])
@pytest.mark.parametrize("op", cases.CASES)
def test_opcheck(op, backend, layout):
    problem = ConvProblem.parse(f"n2_c4_h5_w6_o6_g2_float32_{layout}")
    args = (*cases.make(op, problem, integers=False), backend)
    registered = getattr(torch.ops.resnext_kernels, op).default
    torch.library.opcheck(registered, args)
    if op in DIFFERENTIABLE:
        torch.library.opcheck(registered, requiring_grad(args))


DIFFERENTIABLE = ("grouped_conv2d", "grouped_conv2d_backward", "bn_act", "grouped_conv2d_bn_act")


@pytest.mark.parametrize("op", ["grouped_conv2d_backward", "affine_act_backward", "bn_act_reduce"])
def test_opcheck_with_an_expanded_gradient(op):
    problem = ConvProblem.parse("n2_c4_h5_g2_float32_nhwc")
    grad, *rest = cases.make(op, problem, integers=False)
    args = (torch.ones((), dtype=grad.dtype).expand(grad.shape), *rest, "aten")
    torch.library.opcheck(getattr(torch.ops.resnext_kernels, op).default, args)


@pytest.mark.parametrize("mask", [(True, False), (False, True), (False, False)])
def test_opcheck_of_gradients_not_asked(mask):
    problem = ConvProblem.parse("n2_c4_h5_g2")
    for op in ("grouped_conv2d_backward", "affine_act_backward", "grouped_conv2d_affine_act_backward"):
        *args, full = cases.make(op, problem, integers=False)
        asked = [*mask, False][: len(full)]
        torch.library.opcheck(getattr(torch.ops.resnext_kernels, op).default, (*args, asked, "aten"))


@pytest.mark.parametrize("op", sorted(set(cases.CASES) - set(DIFFERENTIABLE)))
def test_ops_without_a_derivative_refuse(op):
    args = requiring_grad(cases.make(op, ConvProblem.parse("n2_c4_h5_g2"), integers=False))
    results = getattr(torch.ops.resnext_kernels, op)(*args, "aten")
    first = results if isinstance(results, torch.Tensor) else results[0]
    with pytest.raises(RuntimeError, match=f"{op}: expected no gradient through it"):
        first.sum().backward()


def leaves(dtype=torch.float64, c_out=4):
    torch.manual_seed(0)
    shapes = (2, 4, 3, 3), (c_out, 2, 3, 3), (c_out,), (c_out,)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def conv_bn_act(x, weight, bn_weight, bn_bias, training=True, activation="relu", stride=1):
    running = torch.zeros_like(bn_weight).detach(), torch.ones_like(bn_weight).detach()
    return rk.functional.grouped_conv2d_bn_act(
        x, weight, running_mean=running[0], running_var=running[1], bn_weight=bn_weight, bn_bias=bn_bias,
        training=training, padding=1, groups=2, stride=stride, activation=activation,
    )  # fmt: skip


def bn_act(x, _, bn_weight, bn_bias, training=True, activation="relu", residual=None):
    running = torch.zeros_like(bn_weight).detach(), torch.ones_like(bn_weight).detach()
    return rk.functional.bn_act(
        x, running_mean=running[0], running_var=running[1], bn_weight=bn_weight, bn_bias=bn_bias, training=training,
        activation=activation, residual=residual,
    )  # fmt: skip


def conv(x, weight, bias, _, stride=1):
    return rk.functional.grouped_conv2d(x, weight, bias, padding=1, groups=2, stride=stride)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", "identity"])
@pytest.mark.parametrize("function", [conv_bn_act, bn_act])
def test_gradcheck(function, activation, training):
    args = leaves()
    if function is bn_act:
        args = (*args, torch.randn_like(args[0]).requires_grad_())

    def call(x, weight, bn_weight, bn_bias, *residual):
        extra = {"residual": residual[0]} if residual else {}
        return function(x, weight, bn_weight, bn_bias, training=training, activation=activation, **extra)

    for backend in ("reference", "cpu,aten"):
        with rk.use_backend(*backend.split(",")):
            assert torch.autograd.gradcheck(call, args)


def test_gradcheck_through_the_ops_of_aten():
    """Called as ops, as where another backend runs one of the passes: functional runs plain PyTorch instead."""
    x, weight, bn_weight, bn_bias = leaves()
    for activation in ("relu", "silu", "identity"):

        def call(*args, activation=activation):
            rest = (None, None, [1, 1], [1, 1], [1, 1], 2, 1e-5, activation, "aten")
            return torch.ops.resnext_kernels.grouped_conv2d_bn_act(*args, *rest)[0]

        assert torch.autograd.gradcheck(call, (x, weight, bn_weight, bn_bias))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_double_backward_of_conv(backend):
    def call(*args):
        with rk.use_backend(backend):
            return conv(*args, stride=2)

    assert torch.autograd.gradcheck(call, leaves())
    assert torch.autograd.gradgradcheck(call, leaves())


def test_double_backward_of_the_fused_form_says_no():
    args = leaves()
    with rk.use_backend("reference"):
        (dx,) = torch.autograd.grad(conv_bn_act(*args).square().sum(), args[:1], create_graph=True)
        with pytest.raises(RuntimeError, match="use_backend"):
            dx.sum().backward()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["auto", "cpu,aten", "reference"])
@pytest.mark.parametrize("function", [conv, conv_bn_act, bn_act])
def test_compile_fullgraph(no_compiled_code, function, backend, training):
    args, options = leaves(torch.float32), {} if function is conv else {"training": training}
    with rk.use_backend(*backend.split(",")):
        compiled = torch.compile(lambda *a: function(*a, **options), fullgraph=True, backend="aot_eager")
        results = [f(*args) for f in (compiled, lambda *a: function(*a, **options))]
        with torch.no_grad():
            torch.testing.assert_close(compiled(*args), results[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*results)
    grads = [torch.autograd.grad(y.square().sum(), args, allow_unused=True) for y in results]
    for mine, expected in zip(*grads, strict=True):
        assert (mine is None) == (expected is None)
        if mine is not None:
            torch.testing.assert_close(mine, expected)


def test_compile_with_inductor_and_dynamic_sizes(no_compiled_code):
    args = leaves(torch.float32)
    with rk.use_backend("cpu", "aten"):
        compiled = torch.compile(conv_bn_act, fullgraph=True, dynamic=True)
        for size in (4, 7):
            x = torch.randn(3, 4, size, 5)
            torch.testing.assert_close(compiled(x, *args[1:]), conv_bn_act(x, *args[1:]))


def test_export_keeps_the_op():
    class Model(torch.nn.Module):
        def forward(self, x, weight, bn_weight, bn_bias):
            return conv_bn_act(x, weight, bn_weight, bn_bias, training=False)

    args = tuple(leaf.detach() for leaf in leaves(torch.float32))
    with rk.use_backend("cpu"), torch.no_grad():
        program = torch.export.export(Model(), args)
        assert any("grouped_conv2d_affine_act" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(*args), Model()(*args))


@pytest.mark.parametrize("function", [conv, conv_bn_act, bn_act])
def test_torch_func(function):
    """grad, and vmap over a batch of inputs, through the Function that torch.func can transform."""
    args = leaves()

    def loss(*args):
        return function(*args).square().sum()

    with rk.use_backend("reference"):
        used = (0, 2, 3) if function is bn_act else (0, 1, 2)
        got = torch.func.grad(loss, used)(*(a.detach() for a in args))
        expected = torch.autograd.grad(loss(*args), [args[i] for i in used])
        torch.testing.assert_close(got, tuple(expected))
        batch, rest = torch.randn(3, *args[0].shape, dtype=torch.float64), [a.detach() for a in args[1:]]
        mapped = torch.vmap(lambda x: conv_or_frozen(function, x, rest))(batch)
        torch.testing.assert_close(mapped, torch.stack([conv_or_frozen(function, x, rest) for x in batch]))


def conv_or_frozen(function, x, rest):
    """vmap refuses the in-place update of running statistics, as PyTorch's own batch_norm does."""
    return function(x, *rest) if function is conv else function(x, *rest, training=False)


@pytest.mark.parametrize("function", [conv, conv_bn_act, bn_act])
def test_forward_mode_raises(function):
    x, *rest = (leaf.detach() for leaf in leaves())
    with rk.use_backend("reference"), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="jvp"):
            function(dual, *rest)


def test_fake_tensors_run_no_kernel():
    with torch._subclasses.FakeTensorMode(), rk.use_backend("cpu"):
        x, weight = torch.empty(2, 8, 5, 6).to(memory_format=torch.channels_last), torch.empty(8, 4, 3, 3)
        y = rk.functional.grouped_conv2d(x, weight, padding=1, groups=2)
        assert y.shape == (2, 8, 5, 6) and y.is_contiguous(memory_format=torch.channels_last)


def test_recompute_in_activation_checkpointing():
    args = leaves()
    with rk.use_backend("reference"):
        plain = torch.autograd.grad(conv_bn_act(*args).square().sum(), args)
        y = torch.utils.checkpoint.checkpoint(conv_bn_act, *args, use_reentrant=False)
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), args), plain, rtol=0, atol=0)
    expected = F.batch_norm(F.conv2d(args[0], args[1], None, 1, 1, 1, 2), None, None, args[2], args[3], True).relu()
    torch.testing.assert_close(y, expected)


def test_only_the_output_is_differentiable():
    """And backward gets no image of zeros for the outputs that nobody uses."""
    args = (*leaves(), None, None, [1, 1], [1, 1], [1, 1], 2, 1e-5, "relu", "reference")
    y, *rest = torch.ops.resnext_kernels.grouped_conv2d_bn_act(*args)
    assert y.requires_grad and not any(value.requires_grad for value in rest)


@pytest.mark.parametrize("backend", ["auto", "cpu,aten", "reference"])
def test_symbolic_sizes(no_compiled_code, backend):
    """Sizes that tracing leaves open, in the weight alone too, are not hashable."""
    x, weight, bias, _ = (leaf.detach() for leaf in leaves(torch.float32))
    with rk.use_backend(backend):
        traced = make_fx(lambda *a: conv(*a, None), tracing_mode="symbolic")(x, weight, bias)
        torch.testing.assert_close(traced(x, weight, bias), conv(x, weight, bias, None))
        compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
        for outputs in (4, 8, 16):
            weight, bias = torch.randn(outputs, 2, 3, 3), torch.randn(outputs)
            torch.testing.assert_close(compiled(x, weight, bias, bias), conv(x, weight, bias, bias))


def test_training_with_captured_statistics_under_torch_func():
    x, weight, bn_weight, bn_bias = (leaf.detach() for leaf in leaves())
    results = []
    for backend in ("aten", "reference"):
        mean, var = torch.zeros(4, dtype=x.dtype), torch.ones(4, dtype=x.dtype)

        def loss(weight, mean=mean, var=var):
            y = rk.functional.grouped_conv2d_bn_act(x, weight, running_mean=mean, running_var=var, bn_weight=bn_weight,
                                                    bn_bias=bn_bias, training=True, groups=2)  # fmt: skip
            return y.square().sum()

        with rk.use_backend(backend):
            results.append((torch.func.grad(loss)(weight), mean, var))
    torch.testing.assert_close(*results)


@pytest.mark.native
def test_vmap_without_gradients_runs_the_kernel():
    x, *rest = (leaf.detach() for leaf in leaves(torch.float32))
    batch = torch.randn(3, *x.shape)
    with rk.use_backend("cpu"):
        mapped = torch.vmap(lambda x: conv_bn_act(x, *rest, training=False))(batch)
    torch.testing.assert_close(mapped, torch.stack([conv_bn_act(x, *rest, training=False) for x in batch]))


def test_per_sample_gradients():
    x, weight, bias, _ = leaves()
    with rk.use_backend("reference"):
        per_sample = torch.vmap(
            torch.func.grad(lambda weight, x: conv(x[None], weight, bias, None).square().sum()), (None, 0)
        )(weight.detach(), x.detach())
        for i in range(len(x)):
            (grad,) = torch.autograd.grad(conv(x[i : i + 1], weight, bias, None).square().sum(), weight)
            torch.testing.assert_close(per_sample[i], grad)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_flop_counter(backend):
    x, weight, bias, _ = (leaf.detach() for leaf in leaves(torch.float32))
    counts = []
    for choice in ("aten", backend):
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, rk.use_backend(choice):
            conv(x, weight, bias, None)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_double_backward_does_no_more_than_is_needed():
    x, weight, bias, _ = leaves()
    with rk.use_backend("reference"):
        (dx,) = torch.autograd.grad(conv(x, weight, bias, None).square().sum(), x, create_graph=True)
        with rk.backends.record() as ran:
            torch.autograd.grad(dx.square().sum(), weight)
    ops = [op for op, _, _ in ran]
    # ddx meets the weight once as a convolution and once in wgrad; the outer graph adds its own wgrad
    assert ops.count("grouped_conv2d") == 1 and ops.count("grouped_conv2d_backward") == 2


def test_raw_op_keeps_its_dtype_under_autocast():
    args = cases.make("grouped_conv2d", ConvProblem.parse("n1_c4_h5_g2"), integers=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backend in ("aten", "reference"):
            assert torch.ops.resnext_kernels.grouped_conv2d(*args, backend).dtype == torch.float32
