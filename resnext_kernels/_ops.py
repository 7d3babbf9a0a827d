"""The one door to torch.ops: every op is defined here and called through what `define` returns."""

import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from . import direct
from .backends import run

NAMESPACE = "resnext_kernels"
_library = torch.library.Library(NAMESPACE, "DEF")


def define(name, args, returns, *, problem, fake, impl=None, flops=None, setup_context=None, backward=None):
    """Registers the op `name(args, str backend) -> returns` and returns the function to call.

    `problem(*inputs)` checks everything but `backend` and returns the ConvProblem; `fake(*inputs)` returns results of
    the right sizes and strides; `impl` is for an op made of other ops, the rest run the chosen backend's function of
    the op's name; `flops(problem, *inputs)` is for torch.utils.flop_counter. `setup_context(ctx, inputs, output)` and
    `backward(ctx, *grads)` are those of torch.library.register_autograd; an op without them refuses to be
    differentiated.

    The op has a twin `_name` without the formula: through that, or a plain autograd.Function around it, eager mode
    pays a third of the registered formula's overhead. Compilers see the formula, torch.func a Function with
    setup_context.
    """
    if backward is None:
        setup_context, backward = _no_setup, _refuse(name)

    def checked_fake(*args):
        problem(*args[:-1])
        return fake(*args[:-1])

    def run_backend(*args):
        *inputs, backend = args
        return run(name, problem(*inputs), backend, *inputs)

    def count_flops(*args, out_val=None, **kwargs):
        return flops(problem(*args[:-1]), *args[:-1])

    for each in (name, f"_{name}"):
        tags = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)
        _library.define(f"{each}({args}, str backend) -> {returns}", tags=tags)
        _library.impl(each, impl or run_backend, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{each}", checked_fake, lib=_library)
        if flops is not None:
            register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), each), get_raw=True)(count_flops)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    namespace = getattr(torch.ops, NAMESPACE)
    with_formula, raw = getattr(namespace, name).default, getattr(namespace, f"_{name}").default
    implementation = impl or run_backend

    def lean(*args):
        """The op without the dispatcher, which costs as much as a small kernel, where nothing is to see it there."""
        return raw(*args) if direct.is_watched() or not direct.are_plain(args) else implementation(*args)

    eager, functorch = _functions(name, lean, raw, setup_context, backward)

    def call(*args):
        if torch.compiler.is_compiling():
            return with_formula(*args)
        if torch._C._are_functorch_transforms_active():
            return functorch.apply(*args)
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            return eager.apply(*args)
        if forward_ad._current_level >= 0:
            return eager.apply(*args)  # raises for dual tensors: the twin would drop the tangent
        return lean(*args)

    call.__name__ = name
    return call


def define_mutation(name, args, impl):
    """Registers the op `name(args) -> ()` that writes to its arguments, and returns the function to call."""
    _library.define(f"{name}({args}) -> ()", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", lambda *args: None, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _functions(name, lean, raw, setup_context, backward):
    """The two autograd.Functions of an op: the cheap form, and the one that torch.func can transform."""

    def eager_forward(ctx, *inputs):
        output = lean(*inputs)
        setup_context(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(eager_forward), "backward": staticmethod(backward)}
    eager = type(f"{name}_eager", (torch.autograd.Function,), members)
    members = {
        "forward": staticmethod(lambda *inputs: raw(*inputs)),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "generate_vmap_rule": True,
    }
    return eager, type(f"{name}_functorch", (torch.autograd.Function,), members)


def _no_setup(ctx, inputs, output):
    pass


def _refuse(name):
    def backward(ctx, *grads):
        raise RuntimeError(
            f"{NAMESPACE}.{name}: expected no gradient through it, as it has no derivative; for double backward run "
            "the model on plain PyTorch (use_backend('aten'))"
        )

    return backward
