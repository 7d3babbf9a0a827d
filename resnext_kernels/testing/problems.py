"""Named problems: the grouped 3x3 convolutions of the ResNeXt paper's models (arXiv 1611.05431, tables 1 and 2)."""

import csv
from pathlib import Path

import torch

from ..problem import ConvProblem

# cardinality x width of a group in conv2; both the width and the image change by 2 from stage to stage
PAPER_SETTINGS = {"1x64d": (1, 64), "2x40d": (2, 40), "4x24d": (4, 24), "8x14d": (8, 14), "32x4d": (32, 4),
                  "64x4d": (64, 4)}  # fmt: skip
STAGES = {"conv2": (1, 56), "conv3": (2, 28), "conv4": (4, 14), "conv5": (8, 7)}

# C, H, stride of ResNeXt-50 32x4d's seven distinct layers
RESNEXT50 = ((128, 56, 1), (256, 56, 2), (256, 28, 1), (512, 28, 2), (512, 14, 1), (1024, 14, 2), (1024, 7, 1))
# The same of RegNetY-1.6GF, with 24 channels a group
REGNETY_016 = ((48, 112, 2), (48, 56, 1), (120, 56, 2), (120, 28, 1), (336, 28, 2), (336, 14, 1), (888, 14, 2),
               (888, 7, 1))  # fmt: skip


def conv3x3(n, c, h, groups, stride=1, dilation=1, c_out=None, w=None, dtype=torch.float32, layout="nchw",
            device="cpu") -> ConvProblem:  # fmt: skip
    """A 3x3 convolution that keeps the image's size up to its stride."""
    return ConvProblem(n, c, h, w or h, c_out or c, (3, 3), (stride, stride), (dilation, dilation),
                       (dilation, dilation), groups, dtype, layout, device)  # fmt: skip


def cardinality(n, **options) -> dict[str, ConvProblem]:
    """ "32x4d conv2" -> the stride-1 layer of every paper setting and stage, for a batch of `n`."""
    return {
        f"{setting} {stage}": conv3x3(n, groups * width * scale, h, groups, **options)
        for setting, (groups, width) in PAPER_SETTINGS.items()
        for stage, (scale, h) in STAGES.items()
    }


def resnext50(n, **options) -> dict[str, ConvProblem]:
    return {f"{c}@{h} s{s}": conv3x3(n, c, h, 32, s, **options) for c, h, s in RESNEXT50}


def regnety_016(n, **options) -> dict[str, ConvProblem]:
    return {f"{c}@{h} s{s}": conv3x3(n, c, h, c // 24, s, **options) for c, h, s in REGNETY_016}


def case_file(path: Path) -> list[ConvProblem]:
    """The rows of a table of shapes; its columns are N, C_in, C_out, groups, H, W, kh, kw, stride_h and so on."""
    with path.open() as rows:
        return [_of_case(row) for row in csv.DictReader(rows)]


def _of_case(row) -> ConvProblem:
    size = {key: int(value) for key, value in row.items() if key not in ("source", "name")}
    pairs = (tuple(size[f"{key}{axis}"] for axis in axes) for key, axes in
             (("k", "hw"), ("stride_", "hw"), ("pad_", "hw"), ("dil_", "hw")))  # fmt: skip
    return ConvProblem(size["N"], size["C_in"], size["H"], size["W"], size["C_out"], *pairs, size["groups"],
                       torch.float32, "nchw", "cpu")  # fmt: skip


def fits(problem) -> bool:
    """Whether the problem is small enough for float64 references, and to be timed among hundreds."""
    elements = problem.n * problem.h * problem.w * max(problem.c_in, problem.c_out)
    return elements <= 2**22 and problem.flops <= 3e8
