"""The one door to torch.ops: every op is defined here and called through what `define` returns."""

import torch
from torch.autograd import forward_ad

NAMESPACE = "resnext_kernels"
_library = torch.library.Library(NAMESPACE, "DEF")


def define(name, schema, impl, fake, setup_context=None, backward=None):
    """Registers `name` with an autograd formula and its twin `_name` without one, and returns the function to call.

    `setup_context(ctx, inputs, output)` and `backward(ctx, *grads)` are those of torch.library.register_autograd;
    without them the op's results cannot be differentiated, and backward says so.
    Going through the twin, or a plain autograd.Function around it, costs a third of the registered formula's overhead
    in eager mode; compilers see the formula, torch.func a Function with setup_context.
    """
    if backward is None:
        setup_context, backward = _no_setup, _refuse(name)
    for each in (name, f"_{name}"):
        _library.define(f"{each}{schema}", tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
        _library.impl(each, impl, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{each}", fake, lib=_library)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    namespace = getattr(torch.ops, NAMESPACE)
    with_formula, raw = getattr(namespace, name).default, getattr(namespace, f"_{name}").default

    def eager_forward(ctx, *inputs):
        output = raw(*inputs)
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
    functorch = type(f"{name}_functorch", (torch.autograd.Function,), members)

    def call(*args):
        if torch.compiler.is_compiling():
            return with_formula(*args)
        if torch._C._are_functorch_transforms_active():
            return functorch.apply(*args)
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            return eager.apply(*args)
        if forward_ad._current_level >= 0:
            return eager.apply(*args)  # raises for dual tensors: the twin would drop the tangent
        return raw(*args)

    call.__name__ = name
    return call


def _no_setup(ctx, inputs, output):
    pass


def _refuse(name):
    def backward(ctx, *grads):
        raise RuntimeError(
            f"{NAMESPACE}.{name}: its results cannot be differentiated again; for double backward run the model on "
            "plain PyTorch modules"
        )

    return backward
