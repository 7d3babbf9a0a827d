"""Which kernels are ours here: the backend `cuda`, or, dry, what the CPU has in its place."""

from resnext_kernels import backends
from resnext_kernels.testing import cases


def backend(dry: bool) -> str:
    if not dry:
        return "cuda"
    return "cpu" if backends.available_backends()["cpu"] == "available" else "reference"


def why_not(op: str, problem, name: str) -> str | None:
    """None if the backend `name` has `op` on `problem`."""
    chosen, refused = backends.explain(op, problem, name)
    return None if chosen else "; ".join(refused[name])


def claimed(problem, name: str) -> list[str]:
    return [op for op in cases.CASES if why_not(op, problem, name) is None]
