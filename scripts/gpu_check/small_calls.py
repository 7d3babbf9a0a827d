"""Every op of the backends once on small tensors, for compute-sanitizer to watch.

Inputs are made on the CPU, so that hardly a kernel but ours runs. Triton, which compiles each kernel, has few of them.
"""

import itertools
import sys
from dataclasses import replace

import torch

from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases
from resnext_kernels.testing.verify import call

from .numerics import DTYPES
from .ours import claimed, names

# Each width of the kernels, whole and padded groups, both strides, dilation, tiles that images cross and end in.
SHAPES = ("n2_c64_h9_w34_g16", "n1_c64_h7_g8_s2", "n2_c32_h6_w37_g1_p2_d2", "n3_c24_h5_g2", "n1_c128_h8_g4_s2",
          "n40_c8_h3_w1_g2", "n2_c128_h7_g32", "n1_c84_h5_g6")  # fmt: skip


def arguments(op: str, problem: ConvProblem, device: str, optional: bool = True) -> tuple:
    """On `device`, by copies of bytes."""
    made = cases.make(op, replace(problem, device="cpu"), integers=False, optional=optional)
    return tuple(each.to(device) if isinstance(each, torch.Tensor) else each for each in made)


def main(dry: bool) -> int:
    device, (first, *others) = ("cpu" if dry else "cuda"), names(dry)
    wanted = [(first, *each) for each in itertools.product(SHAPES[:2] if dry else SHAPES, DTYPES)]
    wanted += [(name, text, DTYPES[0]) for name in others for text in SHAPES[:2]]
    calls = 0
    for name, text, dtype in wanted:
        problem = replace(ConvProblem.parse(text), dtype=dtype, layout="nhwc", device=device)
        for op in claimed(problem, name):
            call(op, arguments(op, problem, device), name)
            calls += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"calls: {calls}")
    return 0 if calls else 1


if __name__ == "__main__":
    sys.exit(main("--dry" in sys.argv))
