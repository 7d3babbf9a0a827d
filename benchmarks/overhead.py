"""What a call costs before any arithmetic: microseconds on a tiny input, without gradients.

Each call of ours is held against the plain PyTorch that it stands for; `auto` and `cpu` are ways of use_backend. A
figure is the least of several means over many calls: whatever else the machine does only ever adds. Launches of Triton
kernels are timed without a GPU, everything but the driver's part of them (triton_launch.py).
"""

import json
import subprocess
import sys
import timeit
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from options import positive
from rich.table import Table
from torch import nn

import resnext_kernels as rk

MUST_US, GOAL_US = 10, 5  # more than plain PyTorch
LAUNCH_GOAL_US = 3
C, GROUPS, REPEATS = 128, 32, 5
EMPTY, CONV, CONV_BN_ACT, BLOCK = "empty call", "F.conv2d", "F.conv2d, F.batch_norm, relu_", "Bottleneck"


def add_options(parser) -> None:
    parser.add_argument("--calls", type=positive, default=2000, help="in each of the means; default 2000")


def jobs(options) -> dict:
    if options.quick:
        options.calls = min(options.calls, 20)
    sizes = {f"{size}x{size}": size for size in (2, 1)}
    rows = {name: partial(measure, size, options.calls) for name, size in sizes.items()}
    if rk.backends.triton.is_installed():
        rows["triton"] = partial(triton_launches, options.calls)
    return {name: job for name, job in rows.items() if options.only in name}


def functions(size) -> tuple[dict, dict]:
    """(plain PyTorch by name, ours by name with the name of the plain function it stands for)."""
    layer = rk.GroupedConvBNAct2d(C, C, groups=GROUPS).eval()
    conv, bn, x = layer.conv, layer.bn, torch.randn(1, C, size, size)
    stats = dict(running_mean=bn.running_mean, running_var=bn.running_var, bn_weight=bn.weight, bn_bias=bn.bias)

    def conv_bn_act():
        z = F.conv2d(x, conv.weight, None, 1, 1, 1, GROUPS)
        return F.batch_norm(z, bn.running_mean, bn.running_var, bn.weight, bn.bias).relu_()

    def ours_conv():
        return rk.functional.grouped_conv2d(x, conv.weight, None, 1, 1, 1, GROUPS)

    def ours_conv_bn_act():
        return rk.functional.grouped_conv2d_bn_act(x, conv.weight, **stats, padding=1, groups=GROUPS)

    plain = {
        EMPTY: lambda: None,
        CONV: lambda: F.conv2d(x, conv.weight, None, 1, 1, 1, GROUPS),
        CONV_BN_ACT: conv_bn_act,
        "nn.Conv2d, nn.BatchNorm2d, nn.ReLU": partial(nn.Sequential(conv, bn, nn.ReLU(inplace=True)), x),
    }
    ours = {
        "grouped_conv2d": (ours_conv, CONV),
        "grouped_conv2d_bn_act": (ours_conv_bn_act, CONV_BN_ACT),
        "GroupedConvBNAct2d": (partial(layer, x), "nn.Conv2d, nn.BatchNorm2d, nn.ReLU"),
    }
    return _with_blocks(plain, ours, size)


def _with_blocks(plain, ours, size):
    """torchvision's ResNeXt block, where torchvision is installed: as it is, swapped, swapped and frozen."""
    try:
        from torchvision.models.resnet import Bottleneck
    except ImportError:
        return plain, ours
    blocks = [Bottleneck(2 * C, C // 2, groups=GROUPS, base_width=4).eval() for _ in range(3)]
    rk.swap(blocks[1])
    rk.freeze(rk.swap(blocks[2]))
    x = torch.randn(1, 2 * C, size, size)
    plain[BLOCK] = partial(blocks[0], x)
    ours["Bottleneck, swapped"] = partial(blocks[1], x), BLOCK
    ours["Bottleneck, swapped and frozen"] = partial(blocks[2], x), BLOCK
    return plain, ours


@torch.no_grad()
def measure(size, calls) -> list[dict]:
    plain, ours = functions(size)
    contenders = {(name, "PyTorch"): function for name, function in plain.items()}
    backends = ("cpu,aten", "auto")
    contenders |= {(name, backend): function for name, (function, _) in ours.items() for backend in backends}
    means = {contender: [] for contender in contenders}
    for _ in range(REPEATS):
        for (name, backend), function in contenders.items():
            with rk.use_backend("auto" if backend == "PyTorch" else backend):
                function()
                means[name, backend].append(1e6 * timeit.timeit(function, number=calls) / calls)
    rows = []
    for (name, backend), values in means.items():
        row = {"name": name, "input": f"1x{C}x{size}x{size}", "backend": backend, "us": min(values)}
        if name in ours:
            stands_for = ours[name][1]
            row |= {"plain": stands_for, "difference_us": row["us"] - min(means[stands_for, "PyTorch"])}
        rows.append(row)
    return rows


def triton_launches(calls) -> list[dict]:
    """In a process of its own, whose driver is a stand-in."""
    command = [sys.executable, Path(__file__).with_name("triton_launch.py"), str(calls)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"triton_launch.py, which needs triton and a C compiler:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def verdict(difference_us) -> str:
    return "goal" if difference_us <= GOAL_US else "must" if difference_us <= MUST_US else "miss"


def report(rows, console) -> None:
    table = Table(title=f"a call without gradients; must: {MUST_US} us more than plain PyTorch, goal: {GOAL_US} us")
    for title in ("input", "call", "backend"):
        table.add_column(title)
    for title in ("us", "more than", "us", "verdict"):
        table.add_column(title, justify="right")
    for row in rows:
        compared = ("", "", "")
        if "plain" in row:
            compared = row["plain"], f"{row['difference_us']:+.1f}", verdict(row["difference_us"])
        elif row["name"].startswith("Launch"):
            compared = f"goal: {LAUNCH_GOAL_US}", "", "goal" if row["us"] <= LAUNCH_GOAL_US else "miss"
        table.add_row(row["input"], row["name"], row["backend"], f"{row['us']:.1f}", *compared)
    console.print(table)
