"""One pytest-benchmark over (op, layer, layout, backend): wall time of a call, work on the device included.

pytest benchmarks --benchmark-autosave keeps a run; --benchmark-compare-fail=median:10% holds a later one against it.
"""

import pytest
import torch

from resnext_kernels import backends
from resnext_kernels.testing import cases, machine, problems
from resnext_kernels.testing.verify import call

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS = {
    f"{name} {layout}": problem
    for layout in cases.FORMATS
    for name, problem in problems.resnext50(4, layout=layout, device=DEVICE).items()
}
CHOICES = [
    (op, layer, module.NAME)
    for op in cases.CASES
    for layer, problem in LAYERS.items()
    for module in backends.ORDER
    if hasattr(module, op) and not module.unsupported_reasons(op, problem)
]


@pytest.mark.parametrize("op, layer, backend", CHOICES)
def test_op(benchmark, op, layer, backend):
    problem = LAYERS[layer]
    args = cases.make(op, problem, integers=False)

    def run():
        call(op, args, backend)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.extra_info.update(machine.describe(), problem=str(problem), backend=backend)
    with torch.inference_mode():
        benchmark.pedantic(run, rounds=5, warmup_rounds=1)
