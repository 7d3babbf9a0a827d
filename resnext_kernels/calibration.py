"""calibrate: times the kernels against plain PyTorch on the layers of a model, for `auto` to choose by."""

import logging
from functools import partial

import torch

from . import backends, functional, tables
from .explanation import explain
from .testing import cases, machine, timing
from .testing.verify import call, verify

_logger = logging.getLogger("resnext_kernels")


def calibrate(model: torch.nn.Module, input: torch.Tensor, *, compiled: bool = True) -> list[dict]:
    """Measures, on this machine, where kernels beat plain PyTorch for the grouped convolutions of `model`.

    input: a batch (N, C, H, W) of the size, dtype, device and memory format of use; its values do not matter. The
    passes are those of the model's mode, train() or eval(). Every kernel is first held to its error gate; one that
    fails is left out, with a warning. With `compiled`, torch.compile of both is timed as well (slower; needs what
    inductor needs, and drops what this process has compiled so far). Adds the rows to the user's table
    (tables.folder()), which `auto` chooses by from then on, for exactly these problems and number of threads, and
    returns them. The model is not changed. Raises OSError, before measuring, where the table cannot be written.
    """
    tables.check_writable()
    memory_format = torch.channels_last if input.is_contiguous(memory_format=torch.channels_last) else None
    rows = explain(model, input.shape, dtype=input.dtype, memory_format=memory_format)
    measured = {}
    for op, problem in dict.fromkeys((row.op, row.problem) for row in rows):
        for module in backends.ORDER:
            supported = hasattr(module, op) and not module.unsupported_reasons(op, problem)
            if supported and module is not backends.aten and (row := _measure(op, problem, module.NAME, compiled)):
                measured.setdefault(module.device_name(), {})[f"{op} {problem}"] = row
    for device, table in measured.items():
        tables.save(device, table, machine.describe())
    backends.forget()
    return [
        {"device": device, "problem": key, **row} for device, table in measured.items() for key, row in table.items()
    ]


def _measure(op, problem, name, compiled) -> dict | None:
    verdict = verify(op, problem, name)
    if not verdict.passed:
        _logger.warning("%s on %s: %s is outside its error gate and left out: %s", op, problem, name, verdict.where)
        return None
    ours, plain = _contest(op, problem, name), _contest(op, problem, "aten")
    row = {"backend": name, "eager": _speedup(ours, plain, problem.device)}
    row["compiled"] = row["eager"]
    if compiled:
        torch.compiler.reset()
        row["compiled"] = _speedup(*(torch.compile(f, dynamic=False) for f in (ours, plain)), problem.device)
    return row


def _speedup(ours, plain, device) -> float:
    """p20 of plain PyTorch over p80 of ours: a gain that is beyond the noise."""
    times = timing.interleave({"ours": ours, "plain": plain}, device, rounds=25, budget_s=2.0)
    return times["plain"].p20_ms / times["ours"].p80_ms


def _contest(op, problem, name):
    """A function without arguments that does the op's work on a backend; on aten what the user would have had."""
    args = cases.make(op, problem, integers=False)
    conv = dict(stride=problem.stride, padding=problem.padding, dilation=problem.dilation, groups=problem.groups)
    if op == "grouped_conv2d":
        work = partial(functional.grouped_conv2d, args[0], args[1], **conv)
    elif op == "grouped_conv2d_affine_act":
        x, weight, scale, shift, *_ = args
        state = dict(running_mean=shift, running_var=scale, bn_weight=scale, bn_bias=shift)
        work = partial(functional.grouped_conv2d_bn_act, x, weight, **state, **conv)
    else:
        work = partial(call, op, args, name)

    def run():
        with backends.use_backend(name), torch.no_grad():
            return work()

    return run
