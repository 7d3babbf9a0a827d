"""Every op that the backends claim, held to float64: integers bit for bit, normals within the gates of the tests.

Shapes are those of networks, every width of a group, and corners of tiles, in every dtype, stride and dilation. While
those of the first backend run, other processes call what the second one compiles when first called.
"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import torch

from resnext_kernels import backends
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact, problems, verify
from resnext_kernels.testing.cases import CASES

from .ours import names, why_not

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ACTIVATIONS = ("relu", "silu", "identity")
WITHOUT_ACTIVATION = ("grouped_conv2d", "grouped_conv2d_backward", "grouped_conv2d_stats", "bn_stats")
WIDTHS = (1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32)
# Rows and columns that end a tile or an image, images of a pixel, many images in a tile, C_out of a multiple of C_in,
# no padding and much, what float32 alone takes.
CORNERS = (
    "n1_c64_h9_w33_g16", "n3_c64_h5_w6_g8", "n2_c128_h6_w40_g8", "n40_c8_h3_w1_g2", "n1_c16_h1_w2_g4",
    "n1_c64_h20_w8_g4", "n2_c32_o64_h6_g8", "n1_c32_o64_h5_w9_g2", "n1_c16_o48_h5_g2", "n1_c64_h3_w70_g4_s2",
    "n45_c16_h2_w1_g4_s2", "n1_c32_o64_h7_g4_s2", "n1_c64_h7_g16_p0", "n1_c64_h9_g8_p0_s2", "n1_c16_h4_g2_p3_s2",
    "n2_c32_h12_w37_g1_p4_d4", "n3_c16_h5_w7_g4_p1_d3", "n1_c8_h1_w97_g2", "n2_c9_h5_g3", "n1_c25_h7_g5_s3",
    "n1_c80_h6_g2", "n1_c64_h9_g1",
)  # fmt: skip
# Ops of several, which the backend is asked for in one.
COMPOSED = {"bn_act": ("bn_stats", "affine_act"),
            "grouped_conv2d_bn_act": ("grouped_conv2d", "grouped_conv2d_stats", "affine_act")}  # fmt: skip
SECOND_SHARE = 0.4  # of the time, for the second backend
LARGE = 1 << 22  # elements; float64 takes its time


def shapes(dry: bool, device: str) -> list[ConvProblem]:
    """In float32, channels last."""
    if dry:
        return [problems.conv3x3(1, 8, 4, 2, 2, layout="nhwc")]
    options = {"layout": "nhwc", "device": device}
    networks = [*problems.resnext50(2, **options).values(), *problems.regnety_016(2, **options).values()]
    # 12 groups: channels in whole vectors of 16 bytes whatever the width.
    widths = [
        problems.conv3x3(3, 12 * width, 13, 12, stride, dilation, w=19, **options)
        for width in WIDTHS
        for stride, dilation in ((1, 1), (2, 1), (1, 2))
    ]
    large = [problems.conv3x3(32, 128, 56, 32, **options), problems.conv3x3(64, 1024, 7, 32, **options)]
    corners = [replace(ConvProblem.parse(text), **options) for text in CORNERS]
    # Images alone may come in either layout.
    images = [replace(shape, layout="nchw") for shape in corners[:6]]
    return networks[:7] + widths + corners + images + networks[7:] + large


def refused(op: str, problem, name: str) -> str | None:
    """Why the backend does not run all of `op`."""
    for part in COMPOSED.get(op, (op,)):
        if reason := why_not(part, problem, name):
            return reason
    return None


class Wrong(Exception):
    pass


def check(op: str, problem, name: str, activations) -> dict:
    """The worst verdict; Wrong if one is above its gate or an integer is off."""
    wrong, worst = [], verify.Verdict(0.0, 0.0, "exact")
    for activation in activations:
        verdict = verify.verify(op, problem, name, activation=activation)
        worst = max(worst, verdict, key=lambda each: each.ratio)
        if not verdict.passed:
            wrong.append(f"{op} on {problem}, {activation}: {verdict.ratio:.3g} of what is allowed at {verdict.where}")
        if op in exact.OPS and activation != "silu" and problem.n * problem.c_in * problem.h * problem.w < LARGE:
            wrong += filter(None, [exact.mismatch(op, problem, name, activation=activation)])
    if wrong:
        raise Wrong("\n".join(wrong))
    return {
        "backend": name,
        "op": op,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "ratio": worst.ratio,
        "where": worst.where,
    }


def plan(name: str, dry: bool, device: str) -> tuple[dict, Counter]:
    """(Item -> (op, problem, backend, activations), what the backend refuses.)"""
    items, reasons = {}, Counter()
    for shape in shapes(dry, device):
        for dtype in DTYPES:
            problem = replace(shape, dtype=dtype)
            for op in CASES:
                if reason := refused(op, problem, name):
                    reasons[f"{name}, {op}: {reason}"] += 1
                    continue
                one = op in WITHOUT_ACTIVATION or problem.bytes > 8 * LARGE
                activations = ACTIVATIONS[:1] if one else ACTIVATIONS
                items[f"{name} {op} {problem}"] = op, problem, name, activations
    return items, reasons


def warm(part: int, of: int, dry: bool):
    """Calls every `of`-th item of the second backend, on few images, so that triton's cache has the kernels."""
    device = "cpu" if dry else "cuda"
    for name in names(dry)[1:]:
        items, _ = plan(name, dry, device)
        for op, problem, _, activations in list(items.values())[part::of]:
            small = replace(problem, n=min(problem.n, 2))
            for activation in activations:
                for args in cases.variants(op, small, integers=False, activation=activation):
                    verify.call(op, args, name)


def start_warming(dry: bool) -> list[subprocess.Popen]:
    count = 1 if dry else max(1, os.cpu_count() - 2)
    command = [sys.executable, "-m", "gpu_check.numerics", str(count), *(["--dry"] if dry else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([*command, str(part)], env=environment) for part in range(count)]


def main(stage) -> str:
    warming = start_warming(stage.dry)
    try:
        headlines = [held(stage, name, last=name == names(stage.dry)[-1]) for name in names(stage.dry)]
    finally:
        for process in warming:
            process.kill()
            process.wait()
    return "; ".join(headlines)


def held(stage, name: str, last: bool) -> str:
    missing = backends.available_backends()[name]
    if missing != "available":
        stage.fail(name, missing)
        return f"{name}: none"
    items, reasons = plan(name, stage.dry, stage.device)
    for reason, count in reasons.items():
        stage.skip(reason, f"{count} problems")
    needs_s = 1.0 if last else max(1.0, SECOND_SHARE * stage.seconds_left())
    stage.each({item: lambda of=of: check(*of) for item, of in items.items()}, needs_s)
    rows = [row for row in stage.rows if row["backend"] == name]
    if not rows:
        stage.fail("numerics", f"nothing ran on {name}: {dict(reasons)}")
        return f"{name}: none"
    ops, worst = {row["op"] for row in rows}, max(rows, key=lambda row: row["ratio"])
    return f"{name}: {len(rows)} of {len(items)}, {len(ops)} ops, closest {worst['ratio']:.2f} ({worst['op']})"


if __name__ == "__main__":
    count, *dry, part = sys.argv[1:]
    warm(int(part), int(count), bool(dry))
