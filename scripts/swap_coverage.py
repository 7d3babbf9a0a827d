"""How much of torchvision and timm `swap` covers: every architecture that has grouped 3x3 convolutions.

python scripts/swap_coverage.py [--match TEXT] [--sample N] [--json PATH]. A forward pass of fakes finds which grouped
3x3 convolutions go to BatchNorm and an activation alone, by following tensors from module to module; a second one, of
the swapped model, which of them were computed fused. No weights are loaded; --sample computes with random ones.
"""

import argparse
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch._subclasses import FakeTensorMode
from torchvision.models import segmentation

import resnext_kernels as rk
from resnext_kernels import fusion, swapping
from resnext_kernels.explanation import without_data


def architectures() -> list[str]:
    # Detectors are built around a classifier that is in the list itself.
    modules = torchvision.models, torchvision.models.quantization, segmentation
    names = [name for module in modules for name in torchvision.models.list_models(module)]
    return [f"torchvision {name}" for name in names] + [f"timm {name}" for name in timm.list_models()]


def constructor(name: str):
    """A function that makes the model, without weights of others."""
    library, name = name.split()
    if library == "timm":
        return partial(timm.create_model, name)
    backbone = {"weights_backbone": None} if name in torchvision.models.list_models(segmentation) else {}
    return partial(torchvision.models.get_model, name, weights=None, **backbone)


def build(make, device) -> nn.Module:
    """The model on the meta device, or as fakes; where its constructor computes with tensors, from a real one."""
    try:
        with device:
            return make().eval()
    except RuntimeError:
        model = make().eval()
    if not isinstance(device, FakeTensorMode):
        return model
    with device:
        return without_data(model, device)


def grouped(model) -> dict[str, nn.Conv2d]:
    """The 3x3 convolutions of 1 < groups < channels."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels and module.kernel_size == (3, 3)
    }


def chains(model, x) -> set[str]:
    """Names of the grouped convolutions whose output goes to a BatchNorm alone, and on to an activation alone."""
    calls, kept = [], []

    def note(module, inputs, output):
        kept.append((inputs, output))  # so that ids stay unique
        if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
            calls.append((module, id(inputs[0]), id(output)))

    handles = [module.register_forward_hook(note) for module in model.modules() if not list(module.children())
               or hasattr(module, "running_mean")]  # fmt: skip
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    found = set()
    for name, conv in grouped(model).items():
        outputs = [output for module, _, output in calls if module is conv]
        if outputs and all(_is_chain(calls, output) for output in outputs):
            found.add(name)
    return found


def _is_chain(calls, tensor, norm=None) -> bool:
    """Whether `tensor` meets BatchNorm, if that is still to come, and then an activation."""
    consumers = [(module, output) for module, consumed, output in calls if consumed == tensor]
    consumers = [(module, output) for module, output in consumers if not isinstance(module, nn.Identity)] or consumers
    if len(consumers) != 1:
        # An activation in place gives its own input on: the first consumer is the activation.
        if not consumers or norm is None or consumers[0][1] != tensor:
            return False
    module, output = consumers[0]
    if isinstance(module, nn.Identity):
        return False
    if norm is None:
        if not hasattr(module, "running_mean"):
            return False
        act = getattr(module, "act", None)
        return act is not None and not isinstance(act, nn.Identity) or _is_chain(calls, output, module)
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))


def fused(model, x) -> set[str]:
    """Names of the grouped convolutions that a forward pass of the swapped model computes with their norm."""
    names, seen = {id(conv): name for name, conv in grouped(model).items()}, set()
    activated = fusion.Deferred.activated

    def note(deferred, activation):
        seen.add(names.get(id(deferred.conv)))
        return activated(deferred, activation)

    fusion.Deferred.activated = note
    try:
        # Not aten, for which swapped blocks run as they were; fakes run no backend.
        with torch.no_grad(), rk.use_backend("reference"):
            model(x)
    finally:
        fusion.Deferred.activated = activated
    return seen - {None}


def examine(name: str) -> dict | None:
    """One row; None for an architecture without grouped 3x3 convolutions."""
    make, mode = constructor(name), FakeTensorMode(allow_non_fake_inputs=True)
    if not grouped(build(make, torch.device("meta"))):
        return None
    model = build(make, mode)
    side = 299 if "inception" in name else 224
    size = getattr(model, "default_cfg", {}).get("input_size", (3, side, side))
    with mode:
        layers, x = grouped(model), torch.empty(2, *size)
        chained = chains(model, x)
        todo = swapping.plan(model)
        single = set(todo.convs) & set(layers)
        left = {layer: reason for layer, reason in todo.left.items() if layer in layers}
        done = fused(rk.swap(model), x)
    return {
        "architecture": name,
        "layers": len(layers),
        "conv_bn_act": len(chained),
        "conv_bn_act_fused": len(chained & done),
        "fused": len(done),
        "single": len(single),
        "left": len(left),
        "why_left": dict(Counter(left.values())),
    }


def forward(name: str) -> tuple[int, float]:
    """(fused convolutions, largest difference over the largest output) of a real forward pass with our kernels."""
    torch.manual_seed(0)
    model = constructor(name)().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    side = model.default_cfg["input_size"][-1] if getattr(model, "default_cfg", {}).get("fixed_input_size") else 64
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = model(x)
        rk.swap(model)
        with rk.use_backend("cpu", "aten"), rk.backends.record() as ran:
            y = model(x)
    fused_count = sum(op == "grouped_conv2d_affine_act" for op, _, _ in ran)
    return fused_count, float((y - expected).abs().max() / expected.abs().max())


def sample(rows, count, console) -> None:
    """Real forward passes of `count` architectures, evenly chosen among those whose chains are all fused."""
    names = [row["architecture"] for row in rows if row["conv_bn_act"] == row["conv_bn_act_fused"] > 0]
    chosen = [names[i * len(names) // count] for i in range(min(count, len(names)))]
    results = {name: forward(name) for name in track(chosen, console=console, transient=True)}
    worst = max(results, key=lambda name: results[name][1])
    total = sum(number for number, _ in results.values())
    console.print(f"{len(results)} real forward passes, {total} fused convolutions; largest relative difference"
                  f" {results[worst][1]:.1e}, of {worst}")  # fmt: skip


def report(rows, console) -> None:
    table = Table("", "architectures", "layers", title="grouped 3x3 convolutions")
    chained = [row for row in rows if row["conv_bn_act"]]
    whole = [row for row in chained if row["conv_bn_act"] == row["conv_bn_act_fused"]]
    lines = {
        "with such layers": (len(rows), "layers", rows),
        "of them conv -> BatchNorm -> activation": (len(chained), "conv_bn_act", rows),
        "all of those fused": (len(whole), "conv_bn_act_fused", rows),
        "fused with BatchNorm": (sum(row["fused"] > 0 for row in rows), "fused", rows),
        "swapped for a GroupedConv2d": (sum(row["single"] > 0 for row in rows), "single", rows),
        "left as they are": (sum(row["left"] > 0 for row in rows), "left", rows),
    }
    for what, (count, key, of) in lines.items():
        table.add_row(what, str(count), str(sum(row[key] for row in of)))
    console.print(table)
    for reason, count in sum((Counter(row["why_left"]) for row in rows), Counter()).most_common():
        console.print(f"left: {count} layers: {reason}")
    for row in chained:
        if row not in whole:
            console.print(f"not all fused: {row['architecture']}: {row['conv_bn_act_fused']} of {row['conv_bn_act']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only architectures with this text in their name")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="then real forward passes of N of them")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options, console, rows = parser.parse_args(), Console(width=120), []
    for name in track([name for name in architectures() if options.match in name], console=console, transient=True):
        try:
            row = examine(name)
        except Exception as error:  # one model that cannot be built must not hide the others
            console.print(f"[red]{name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        rows += [row] if row else []
    report(rows, console)
    if options.sample:
        sample(rows, options.sample, console)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
