"""A new op touches three places: ops/, the reference, the cases; shown with a throw-away op in a copy."""

import shutil
import subprocess
import sys
from pathlib import Path

import resnext_kernels

OP = '''
"""y = factor * x."""

import torch

from .._ops import define
from ..problem import ConvProblem, memory_format

double_it = define(
    "double_it",
    "Tensor x, float factor",
    "Tensor",
    problem=lambda x, factor: ConvProblem.from_image(x),
    fake=lambda x, factor: torch.empty_like(x, memory_format=memory_format(x)),
)
'''
REFERENCE = '''

def double_it(x, factor):
    """y = factor * x."""
    return _image(factor * x.double(), x)
'''
CASE = """

@case
def double_it(problem, fill, activation):
    return fill.x(), 2.0
"""
USE = """
import torch
from resnext_kernels import __main__
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, verify
for layout in cases.FORMATS:
    problem = ConvProblem.parse(f"n2_c4_h5_{layout}")
    args = cases.make("double_it", problem, integers=True)
    (y,) = verify.call("double_it", args, "reference")
    assert torch.equal(y, 2 * args[0]) and y.stride() == args[0].stride()
    torch.library.opcheck(torch.ops.resnext_kernels.double_it.default, (*args, "reference"))
try:
    torch.ops.resnext_kernels.double_it(*args, "cpu")
except RuntimeError as error:
    assert "cpu: has no double_it" in str(error)
__main__.main(["explain", "c4_h5", "--backend", "reference"])
"""


def test_new_op_touches_three_places(tmp_path):
    package = tmp_path / "resnext_kernels"
    shutil.copytree(Path(resnext_kernels.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    edits = {"ops/double_it.py": OP, "backends/reference.py": REFERENCE, "testing/cases.py": CASE}
    for file, text in edits.items():
        with open(package / file, "a") as source:
            source.write(text)
    result = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "double_it" in result.stdout
