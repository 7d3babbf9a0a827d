"""explain: for every grouped convolution of a model, the problem it is and the backend of each of its passes."""

import copy
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._subclasses import FakeTensorMode

from . import backends
from .modules import GroupedConvBNAct2d
from .problem import ConvProblem
from .swapping import Swapped, fusable, plan

_FUSED = {
    False: ("grouped_conv2d_affine_act",),
    True: ("grouped_conv2d_stats", "affine_act", "bn_act_reduce", "grouped_conv2d_affine_act_backward"),
}
_SINGLE = {False: ("grouped_conv2d",), True: ("grouped_conv2d", "grouped_conv2d_backward")}


@dataclass
class Row:
    """One pass of one layer; `swapped` says how swap treats the layer, `reasons` why earlier backends cannot."""

    layer: str
    problem: ConvProblem
    swapped: str
    op: str
    backend: str
    reasons: dict[str, list[str]]


class Explanation(list):
    """The rows; printed as a table."""

    def to_dict(self) -> list[dict]:
        return [{**asdict(row), "problem": str(row.problem)} for row in self]

    def __str__(self):
        table = Table("layer", "problem", "swapped", "op", "backend", "why not the others")
        for row in self:
            why = "\n".join(f"{name}: {'; '.join(reasons)}" for name, reasons in row.reasons.items())
            table.add_row(row.layer, str(row.problem), row.swapped, row.op, row.backend, why)
        console = Console(width=200)
        with console.capture() as captured:
            console.print(table)
        return captured.get()


def without_data(model: nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of the model whose tensors are fakes, the floating ones of `dtype` if that is given."""

    def fake(tensor):
        result = mode.from_tensor(tensor.detach())
        return result.to(dtype) if dtype is not None and result.is_floating_point() else result

    memo = {id(buffer): fake(buffer) for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(fake(parameter), parameter.requires_grad)
    return copy.deepcopy(model, memo)


def _layers(model, input_size, dtype, memory_format, training) -> list[tuple[str, ConvProblem]]:
    """(name, problem) of every call of a grouped convolution in one forward pass of fakes."""
    calls = []

    def note(name, module, inputs):
        conv = (module.stride, module.padding, module.dilation, module.groups)
        calls.append((name, ConvProblem.from_tensors(inputs[0], module.weight, *conv)))

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad(), backends.use_backend("aten"):
        model = without_data(model, mode, dtype)
        if training is not None:
            model.train(training)
        for name, module in model.named_modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                hooks.clear()  # the user's, on the copy: they are not to see fakes
            if isinstance(module, nn.Conv2d) and module.groups > 1 and not isinstance(module.padding, str):
                module.register_forward_pre_hook(partial(note, name))
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        x = torch.empty(tuple(input_size), dtype=like.dtype, device=like.device)
        model(x.contiguous(memory_format=memory_format or torch.contiguous_format))
    return calls


def explain(model, input_size, *, dtype=None, device=None, memory_format=None, training=None) -> Explanation:
    """What runs each pass of each grouped convolution of `model`, and why; runs nothing and changes nothing.

    input_size: (N, C, H, W) of the model's input. dtype, device and training default to the model's own, memory_format
    to contiguous. Honours use_backend. Rows have layer, problem, swapped, op, backend, reasons.
    """
    todo = plan(model)
    status = {
        conv: f"no; swap fuses it in {block or 'the model'}" for block, convs in todo.blocks.items() for conv in convs
    }
    status |= {conv: "no; swap makes it a GroupedConv2d" for conv in todo.convs}
    status |= {conv: f"no: {reason}" for conv, reason in todo.left.items()}
    fused = {conv for convs in todo.blocks.values() for conv in convs}
    for name, module in model.named_modules():
        if isinstance(module, (Swapped, GroupedConvBNAct2d)):
            inside = fusable(module, name)
            fused.update(inside)
            status |= {conv: f"in {name or 'the model'}" for conv in inside} or {name: "as a GroupedConv2d"}
    training = model.training if training is None else training
    kind = torch.device(device or next((p.device for p in model.parameters()), "cpu")).type
    rows = Explanation()
    for name, problem in _layers(model, input_size, dtype, memory_format, training):
        problem = replace(problem, device=kind)
        for op in (_FUSED if name in fused else _SINGLE)[training]:
            backend, reasons = backends.explain(op, problem, backends.requested())
            rows.append(Row(name, problem, status.get(name, "as a GroupedConv2d"), op, backend or "none", reasons))
    return rows
