"""Named problems: the grouped 3x3 convolutions of the ResNeXt paper's models (arXiv 1611.05431, tables 1 and 2)."""

import torch

from ..problem import ConvProblem

# cardinality x width of a group in conv2; both the width and the image change by 2 from stage to stage
PAPER_SETTINGS = {"1x64d": (1, 64), "2x40d": (2, 40), "4x24d": (4, 24), "8x14d": (8, 14), "32x4d": (32, 4),
                  "64x4d": (64, 4)}  # fmt: skip
STAGES = {"conv2": (1, 56), "conv3": (2, 28), "conv4": (4, 14), "conv5": (8, 7)}

# C, H, stride of ResNeXt-50 32x4d's seven distinct layers
RESNEXT50 = ((128, 56, 1), (256, 56, 2), (256, 28, 1), (512, 28, 2), (512, 14, 1), (1024, 14, 2), (1024, 7, 1))


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
