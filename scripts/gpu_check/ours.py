"""Which kernels are ours here: the backends `cuda` and `triton`, or, dry, what the CPU has in their place."""

from resnext_kernels import backends
from resnext_kernels.testing import cases


def names(dry: bool) -> tuple[str, ...]:
    """The one that most is asked of first."""
    if not dry:
        return "cuda", "triton"
    return ("cpu", "reference") if backends.available_backends()["cpu"] == "available" else ("reference",)


def why_not(op: str, problem, name: str) -> str | None:
    """None if the backend `name` has `op` on `problem`."""
    chosen, refused = backends.explain(op, problem, name)
    return None if chosen else "; ".join(refused[name])


def claimed(problem, name: str) -> list[str]:
    return [op for op in cases.CASES if why_not(op, problem, name) is None]
