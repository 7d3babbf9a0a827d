"""swap and restore: the blocks of an existing model run fused, with the same modules, parameters and names."""

import copy
import copyreg
import warnings
from dataclasses import dataclass
from functools import cache

from torch import nn
from torch.distributed.fsdp import FSDPModule

from . import fusion
from .modules import GroupedConv2d, GroupedConvBNAct2d

# Classes whose forward is a chain of conv -> norm -> activation as fusion.View can follow; told by name, so that
# neither torchvision nor timm is imported. Subclasses are not meant: they may have another forward.
_ADAPTED = {
    "torchvision.models.resnet.Bottleneck",
    "torchvision.ops.misc.Conv2dNormActivation",
    "timm.layers.conv_bn_act.ConvNormAct",
    "timm.layers.split_attn.SplitAttn",
    "timm.models._efficientnet_blocks.EdgeResidual",
    "timm.models._efficientnet_blocks.InvertedResidual",
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv",
    "timm.models.cpubone.ConvLayer",
    "timm.models.dla.DlaBottleneck",
    "timm.models.dla.DlaBottle2neck",
    "timm.models.dpn.DualPathBlock",
    "timm.models.nextvit.ConvAttention",
    "timm.models.res2net.Bottle2neck",
    "timm.models.resnet.Bottleneck",
    "timm.models.senet.SEBottleneck",
    "timm.models.senet.SEResNeXtBottleneck",
}
_registered: dict[type, dict[str, str]] = {}
_QUANTIZED = ("torchvision.models.quantization", "torch.ao", "torchao")


def register_adapter(block: type, *, conv: str, norm: str, act: str) -> None:
    """Lets `swap` fuse act(norm(conv(x))) in blocks of the class `block`, subclasses not included.

    `conv`, `norm` and `act` are the names of the block's children. In the block's forward the output of conv must go
    to norm alone, and that of norm to act alone; what lies between may be nn.Identity. The forward runs on a view of
    the block, so it cannot call super(), and conv's input must not change in place before act.
    """
    if not (isinstance(block, type) and issubclass(block, nn.Module)):
        raise TypeError(f"block: expected a subclass of nn.Module, got {block!r}")
    _registered[block] = dict(conv=conv, norm=norm, act=act)


class Swapped:
    """Mixin of the classes that `swap` gives to modules: everything but forward is that of the class `original`."""

    original: type

    def __reduce_ex__(self, protocol):
        # A pickle holds the original class, so that it loads without this package.
        return copyreg._reconstructor, (self.original, object, None), self.__getstate__()

    def __copy__(self):
        return _as(self, type(self), dict(self.__dict__))

    def __deepcopy__(self, memo):
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        state = {key: value for key, value in self.__dict__.items() if key != "_compiled_call_impl"}
        object.__setattr__(clone, "__dict__", copy.deepcopy(state, memo))
        return clone

    def __prepare_scriptable__(self):
        return _as(self, self.original)

    def train(self, mode=True):
        if mode:
            fusion.thaw(self)
        return super().train(mode)


class _SwappedBlock(Swapped):
    def forward(self, *args, **kwargs):
        if fusion.runs_original(*args):
            return self.original.forward(self, *args, **kwargs)
        names = _registered.get(self.original)
        return fusion.resolve(self.original.forward(fusion.View(self, names and names.values()), *args, **kwargs))


class _SwappedConv(Swapped, GroupedConv2d):
    pass


def _as(module, kind, state=None):
    """Another object of class `kind` with the same state."""
    other = kind.__new__(kind)
    object.__setattr__(other, "__dict__", module.__dict__ if state is None else state)
    return other


@cache
def _swapped_class(original: type, mixin: type) -> type:
    # Named as the original, for those who match classes by name; isinstance holds too.
    members = {"__module__": original.__module__, "__qualname__": original.__qualname__, "original": original}
    return type(original.__name__, (mixin, original), members)


@dataclass
class Plan:
    """What `swap` would do: names of blocks and of single convolutions, and why other grouped convolutions are left."""

    blocks: dict[str, list[str]]
    convs: list[str]
    left: dict[str, str]


def _is_grouped(module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def _is_adapted(block) -> bool:
    return type(block) in _registered or fusion.class_name(block) in _ADAPTED


def fusable(block, prefix: str) -> list[str]:
    """Names of the grouped convolutions that the view of the block of name `prefix` can fuse with a norm."""
    names = _registered.get(getattr(block, "original", type(block)))
    if not any(fusion.is_norm(module) for module in block.modules()):
        return []
    prefix = f"{prefix}." if prefix else ""
    return [
        f"{prefix}{name}"
        for name, conv in _viewed(block)
        if _is_grouped(conv) and fusion.why_conv_not_fused(conv) is None and (names is None or name == names["conv"])
    ]


def _viewed(block):
    """(name, module) of what the block's view shows: its children, and theirs where it looks through them."""
    for name, child in block.named_children():
        yield name, child
        if isinstance(child, nn.ModuleList) or fusion.class_name(child) in fusion.TRANSPARENT:
            yield from ((f"{name}.{inner}", module) for inner, module in _viewed(child))


def _why_left(conv, parent) -> str | None:
    """Why a grouped convolution outside of adapted blocks does not become a GroupedConv2d."""
    if type(parent).__module__.startswith(_QUANTIZED) or hasattr(conv, "qconfig"):
        return "belongs to a module that is made for quantisation"
    if fusion.class_name(conv) != "torch.nn.modules.conv.Conv2d":
        return f"is a {type(conv).__name__}, not nn.Conv2d"
    if type(conv) is not nn.Conv2d:
        return f"is of class {type(conv).__name__}: its parametrisation or sharding replaced the class; swap before it"
    if conv.kernel_size != (3, 3):
        return f"has a kernel of {conv.kernel_size}; kernels here are for 3x3"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"pads with {conv.padding_mode!r} {conv.padding!r}"
    return None


def plan(model: nn.Module, filter_fn=None) -> Plan:
    """What swap(model, filter_fn) would change; changes nothing."""
    modules = dict(model.named_modules())
    result, covered = Plan({}, [], {}), set()
    sharded = tuple(f"{name}." if name else "" for name, module in modules.items() if isinstance(module, FSDPModule))
    for name, module in modules.items():
        if f"{name}.".startswith(sharded):
            continue
        if isinstance(module, GroupedConvBNAct2d):
            covered.add(f"{name}.conv" if name else "conv")
        elif isinstance(module, Swapped):
            covered.update(fusable(module, name), [name])
        elif _is_adapted(module):
            convs = [conv for conv in fusable(module, name) if conv not in covered]
            if convs and (filter_fn is None or filter_fn(module, name)):
                result.blocks[name] = convs
                covered.update(convs)
    for name, module in modules.items():
        if not _is_grouped(module) or name in covered or isinstance(module, GroupedConv2d):
            continue
        reason = _why_left(module, modules[name.rpartition(".")[0]])
        if f"{name}.".startswith(sharded):
            reason = "is sharded by fully_shard; swap before it"
        if reason is None and filter_fn is not None and not filter_fn(module, name):
            reason = "filter_fn says no"
        if reason is None:
            result.convs.append(name)
        else:
            result.left[name] = reason
    return result


def swap(model: nn.Module, filter_fn=None, on_unsupported: str = "skip") -> nn.Module:
    """Makes the grouped 3x3 convolutions of `model`, with the BatchNorm and activation behind them, run fused.

    In place and undone by `restore`: parameters, buffers, hooks and state_dict keys stay, as do isinstance and class
    names. Known blocks of torchvision and timm, and those told to register_adapter, are fused; any other 3x3
    nn.Conv2d with groups > 1 becomes a GroupedConv2d. A block runs its original forward wherever that is as good or
    something must see its parts: hooks, torch.jit, ONNX export, torch.fx. A pickle holds the original classes, and
    torch.jit.script un-swaps the model given to it: script a deepcopy.

    filter_fn(module, name) -> bool chooses among the blocks and convolutions. on_unsupported says what to do about
    grouped convolutions that are left as they are: "skip", "warn", or "raise" (ValueError, before anything changes).
    Swap before fully_shard. Returns `model`.
    """
    if on_unsupported not in ("skip", "warn", "raise"):
        raise ValueError(f"on_unsupported: expected 'skip', 'warn' or 'raise', got {on_unsupported!r}")
    todo = plan(model, filter_fn)
    if todo.left and on_unsupported != "skip":
        lines = "".join(f"\n  {name}: {reason}" for name, reason in todo.left.items())
        message = f"swap: {len(todo.left)} grouped convolutions are left as they are:{lines}"
        if on_unsupported == "raise":
            raise ValueError(f"{message}\nleave them out with filter_fn, or use on_unsupported='skip'")
        warnings.warn(message, stacklevel=2)
    modules = dict(model.named_modules())
    for names, mixin in ((todo.blocks, _SwappedBlock), (todo.convs, _SwappedConv)):
        for name in names:
            modules[name].__class__ = _swapped_class(type(modules[name]), mixin)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undoes `swap`, in place; returns `model`.

    Raises ValueError, before anything changes, where a swapped module was parametrised or sharded later.
    """
    swapped = {name: module for name, module in model.named_modules() if isinstance(module, Swapped)}
    for name, module in swapped.items():
        if "original" not in type(module).__dict__:
            raise ValueError(
                f"model: expected {name or 'it'} as swap left it, got a {type(module).__name__} made from it by a "
                "parametrisation or fully_shard; undo that first"
            )
    for module in swapped.values():
        fusion.thaw(module)
        module.__class__ = module.original
    return model


def freeze(model: nn.Module) -> nn.Module:
    """Prepares swapped blocks for inference: BatchNorm is folded once, not in every call. Returns `model`.

    Undone by train(), by restore() and, for each BatchNorm, by any change to its tensors but those through .data or
    NumPy, which PyTorch does not see. Where gradients are on, and in compiled code, nothing is different.
    """
    frozen = [module for module in model.modules() if isinstance(module, Swapped)]
    if any(module.training for module in frozen):
        raise ValueError("model: expected one in evaluation, got one with blocks in training; call model.eval() before")
    for module in frozen:
        fusion.freeze(module)
    return model
