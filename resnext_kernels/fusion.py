"""Runs a block's own forward with its convolutions, norms and activations deferred, so that they can fuse.

A swapped block calls its original forward on a `View` of itself. The view's convolution returns a `Deferred`, its norm
adds itself to that, its activation computes the whole by one functional call. Whatever else touches a Deferred, an
attention module, torch.cat, an attribute, gets the tensor that the original modules compute. Nothing of the block is
changed: parameters, buffers, hooks and names stay where they are.
"""

from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.nn.modules import module as nn_module

from . import backends, functional
from .batch_norm import fold_running
from .problem import stats_dtype

_ACTIVATIONS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Identity: "identity"}
_CONVS = {"torch.nn.modules.conv.Conv2d", "resnext_kernels.modules.GroupedConv2d"}
# Told by name, as neither torchvision nor timm is imported. Frozen ones are BatchNorm in evaluation, for ever.
_NORMS = {"torch.nn.modules.batchnorm.BatchNorm2d", "torch.nn.modules.batchnorm.SyncBatchNorm",
          "timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.SyncBatchNormAct"}  # fmt: skip
_FROZEN_NORMS = {"torchvision.ops.misc.FrozenBatchNorm2d", "timm.layers.norm_act.FrozenBatchNormAct2d"}
_ALL_NORMS = _NORMS | _FROZEN_NORMS
_SYNC = ("SyncBatchNorm", "SyncBatchNormAct")
# Containers whose forward is viewed like the block's own: what they return may stay deferred.
TRANSPARENT = {"timm.models.dpn.BnAct", "timm.models.dpn.BnActConv2d"}


def class_of(module) -> type:
    """The class; of a parametrised module the one it had before. As PyTorch tells it, without its attribute look-up."""
    kind = type(module)
    return kind.__bases__[0] if "parametrizations" in module._modules else kind


@cache
def _name(kind) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def class_name(module) -> str:
    return _name(class_of(module))


def has_hooks(module) -> bool:
    """Hooks, and a forward of the instance's own, see a module's input and output: one that has any runs by itself."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in module.__dict__


def has_global_hooks() -> bool:
    return bool(
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    )


def runs_original(*inputs) -> bool:
    """Whether a module's original forward is as good as the fused one, or something must see its parts."""
    return (
        backends.always_plain(backends.requested())
        or torch.jit.is_tracing()
        or torch.onnx.is_in_onnx_export()
        or has_global_hooks()
        or any(isinstance(x, fx.Proxy) for x in inputs)
    )


def why_conv_not_fused(conv) -> str | None:
    if not isinstance(conv, nn.Conv2d) or class_name(conv) not in _CONVS:
        return f"is a {type(conv).__name__}, not nn.Conv2d"
    if conv.groups == 1 or conv.kernel_size != (3, 3):
        return f"is a {conv.kernel_size} convolution of {conv.groups} groups"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"pads with {conv.padding_mode!r} {conv.padding!r}"
    if conv.bias is not None:
        return "has a bias"
    if has_hooks(conv):
        return "has hooks"
    return None


def is_norm(module) -> bool:
    return class_name(module) in _ALL_NORMS


def why_norm_not_fused(norm) -> str | None:
    name = class_name(norm)
    if name not in _ALL_NORMS:
        return f"is a {type(norm).__name__}, not BatchNorm2d"
    if name.endswith(_SYNC) and norm.training:
        return f"is a {type(norm).__name__} in training, which talks to other processes"
    if has_hooks(norm):
        return "has hooks"
    drop = norm._modules.get("drop")
    if drop is not None and type(drop) is not nn.Identity:
        return f"drops with {type(drop).__name__}"
    if any(has_hooks(part) for part in norm._modules.values() if part is not None):
        return "has hooks on its parts"
    return None


def _statistics(norm) -> dict:
    """The BatchNorm arguments of functional.bn_act, after counting the batch as the norm itself would."""
    if class_name(norm) in _FROZEN_NORMS:
        training, momentum, tracked = False, 0.0, True
    else:
        momentum, tracked = norm.momentum, norm.track_running_stats
        if norm.training and tracked and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:  # the cumulative average
                momentum = 1.0 / float(norm.num_batches_tracked)
        training = norm.training or norm.running_mean is None
    keep = not norm.training or tracked
    return dict(
        running_mean=norm.running_mean if keep else None, running_var=norm.running_var if keep else None,
        bn_weight=norm.weight, bn_bias=norm.bias, training=training, momentum=momentum or 0.0, eps=norm.eps,
    )  # fmt: skip


# Folded (scale, shift) of norms whose model is frozen.
_frozen: WeakKeyDictionary = WeakKeyDictionary()


def freeze(block: nn.Module) -> None:
    """Folds the statistics of every fusable norm in evaluation under `block`, for use until thaw(block)."""
    for module in block.modules():
        if why_norm_not_fused(module) is None and not module.training and module.running_mean is not None:
            vectors = (module.weight, module.bias, module.running_mean, module.running_var)
            with torch.no_grad():
                folded = fold_running(*vectors, module.eps, module.running_mean)
            _frozen[module] = vectors, tuple(map(_version, vectors)), folded


def thaw(block: nn.Module) -> None:
    for module in block.modules():
        _frozen.pop(module, None)


def _frozen_vectors(norm, x):
    """(scale, shift) where the norm is frozen, unchanged since, and nothing is differentiated."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or norm not in _frozen:
        return None
    before, versions, folded = _frozen[norm]
    vectors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    same = all(a is b for a, b in zip(vectors, before, strict=True)) and versions == tuple(map(_version, vectors))
    if norm.training or not same:
        del _frozen[norm]
        return None
    return folded if folded[0].device == x.device and folded[0].dtype == stats_dtype(x.dtype) else None


def _version(tensor) -> int | None:
    """Changes with every write that PyTorch sees: not those through .data or NumPy."""
    return None if tensor is None or tensor.is_inference() else tensor._version


class Deferred:
    """A tensor that is not computed yet: conv(x), norm(conv(x)) or norm(x), the last with a residual or not.

    A norm runs once, as it counts batches and updates its statistics: once it went into a fused call, the tensor
    before its activation is not to be had, and who asks for it is told.
    """

    def __init__(self, x, conv=None, norm=None, residual=None):
        self.x, self.conv, self.norm, self.residual = x, conv, norm, residual
        self.value, self.spent = None, False

    def spend(self) -> None:
        if self.spent:
            raise RuntimeError(
                f"swap: expected the output of {type(self.norm).__name__} to be used once in its block, got a second "
                "use; leave the block out: swap(model, filter_fn=...)"
            )
        self.spent = True

    def resolve(self) -> torch.Tensor:
        """The tensor itself: a convolution and its norm fused, all else by the original modules."""
        if self.value is None:
            if self.norm is None:
                conv = self.conv
                geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
                self.value = functional.grouped_conv2d(self.x, conv.weight, None, *geometry)
            elif self.conv is not None:
                self.value = self.activated("identity")
            else:
                self.spend()
                value = self.norm(self.x)
                self.value = value if self.residual is None else value + self.residual
        return self.value

    def activated(self, activation: str) -> torch.Tensor:
        """activation(self), fused."""
        self.spend()
        x, conv = self.x, self.conv
        if conv is None:
            return functional.bn_act(x, **_statistics(self.norm), residual=self.residual, activation=activation)
        geometry = dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups)
        frozen, y = _frozen_vectors(self.norm, x), None
        if frozen is not None:
            y = functional.frozen_conv2d_bn_act(x, conv.weight, *frozen, **geometry, activation=activation)
        if y is None:
            bn = _statistics(self.norm)
            y = functional.grouped_conv2d_bn_act(x, conv.weight, **bn, **geometry, activation=activation)
        return y

    def __add__(self, other):
        other = resolve(other)
        deferred = self._with_residual(other)
        return self.resolve() + other if deferred is None else deferred

    __radd__ = __add__

    def __iadd__(self, other):
        other = resolve(other)
        deferred = self._with_residual(other)
        if deferred is None:
            deferred = self.resolve()
            deferred += other  # in place, as it was written: the dtype stays
        return deferred

    def _with_residual(self, other):
        """norm(x) + other, where the fused op can take it."""
        x = self.x
        alike = isinstance(other, torch.Tensor) and (other.shape, other.dtype) == (x.shape, x.dtype)
        if self.conv is None and self.residual is None and self.value is None and alike:
            self.spend()
            return Deferred(x, None, self.norm, other)
        return None

    def __getattr__(self, name):
        return getattr(self.resolve(), name)

    def __getitem__(self, index):
        return self.resolve()[index]

    def __mul__(self, other):
        return self.resolve() * resolve(other)

    __rmul__ = __mul__

    def __sub__(self, other):
        return self.resolve() - resolve(other)

    def __truediv__(self, other):
        return self.resolve() / resolve(other)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        args = [[resolve(v) for v in a] if isinstance(a, (list, tuple)) else resolve(a) for a in args]
        return function(*args, **{key: resolve(value) for key, value in (kwargs or {}).items()})


def resolve(value):
    if isinstance(value, tuple):
        return tuple(map(resolve, value))
    return value.resolve() if isinstance(value, Deferred) else value


class Child:
    """A child of a block as its view shows it: a call may be deferred, all else is the module's own."""

    def __init__(self, module, defers=True):
        self.module, self.defers = module, defers

    def __call__(self, x, *args, **kwargs):
        module = self.module
        if not isinstance(module, nn.Module) or has_hooks(module):
            return module(resolve(x), *map(resolve, args), **kwargs)
        if _name(class_of(module)) in TRANSPARENT:
            return type(module).forward(View(module), x, *args, **kwargs)
        kind = class_of(module)
        if isinstance(x, Deferred):
            if kind is nn.Identity:
                return x
            if x.norm is not None and x.value is None and kind in _ACTIVATIONS:
                return x.activated(_ACTIVATIONS[kind])
        starts = self.defers and isinstance(x, torch.Tensor) and x.dim() == 4
        if starts and why_conv_not_fused(module) is None:
            return Deferred(x, module)
        if (starts or (isinstance(x, Deferred) and x.norm is None)) and why_norm_not_fused(module) is None:
            return _normed(x, module)
        return module(resolve(x), *map(resolve, args), **kwargs)

    def __getattr__(self, name):
        return getattr(self.module, name)

    def __iter__(self):
        return map(Child, self.module)

    def __getitem__(self, index):
        return Child(self.module[index])


def _normed(x, norm):
    """norm(x): deferred, unless the norm brings an activation of its own."""
    deferred = Deferred(x.x, x.conv, norm) if isinstance(x, Deferred) else Deferred(x, None, norm)
    act = norm._modules.get("act")
    if act is None or type(act) is nn.Identity:
        return deferred
    if type(act) in _ACTIVATIONS:
        return deferred.activated(_ACTIVATIONS[type(act)])
    return act(deferred.activated("identity"))


class View:
    """A block as its forward sees it: its children are `Child`, all else is the block's own.

    With `names`, only the convolution of those names starts a chain.
    """

    def __init__(self, block, names=None):
        self.__dict__["block"], self.__dict__["names"] = block, names

    def __getattr__(self, name):
        value = getattr(self.block, name)
        if isinstance(value, nn.Module):
            return Child(value, self.names is None or name in self.names)
        return value

    def __setattr__(self, name, value):
        setattr(self.block, name, resolve(value))

    def __iter__(self):
        return map(Child, self.block)
