"""Compiles the Triton kernels ahead of time, exactly as backends/triton.py would launch them, with no GPU.

`python tests/triton_aot.py` prints what came out as JSON, `--all` for every variant and architecture, `--record` puts
that into triton_budgets.json. It takes a process of its own: in one with TRITON_INTERPRET nothing compiles.
"""

import argparse
import itertools
import json
import re
import subprocess
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

RECORD = Path(__file__).with_name("triton_budgets.json")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# Shared memory that one block can have, in KiB.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# A problem of every form and width of a pack, at both strides; those with a star are compiled by default.
PROBLEMS = {
    "pairs*": "n256_c128_h56_g32", "narrow*": "n256_c512_h14_g32", "narrow strided*": "n256_c512_h28_g32_s2",
    "middle*": "n256_c1024_h7_g32", "middle strided*": "n256_c1024_h14_g32_s2", "wide*": "n256_c512_h28_g8",
    "pairs of 3": "n64_c96_h56_g32", "narrow of 14": "n64_c112_h56_g8", "middle of 24": "n64_c120_h28_g5",
    "widening": "n64_c128_o512_h14_g32", "dilated": "n64_c512_h14_g32_p2_d2", "wide of 80": "n64_c160_h56_g2",
    "pairs strided*": "n256_c256_h56_g64_s2", "wide strided*": "n256_c512_h28_g8_s2",
}  # fmt: skip
VARIANTS = ("plain", "affine", "stats")
BACKWARD = ("wgrad", "wgrad dz")
_FLOATS = ("scale", "shift", "a", "b", "c", "mean", "rstd", "m2", "partials", "sum_g", "sum_g_xhat")


@dataclass
class Usage:
    """Of one kernel on one architecture; `local` is bytes of stack and never recorded, as none is allowed."""

    registers: int
    shared: int
    mma: str  # the kind of matrix instruction
    instructions: int  # in all of the kernel
    local: int = 0


RECORDED = [field.name for field in fields(Usage)][:-1]


def _tools():
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _compile(launch, absent, dtype, architecture):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch._kernel
    constants = {**launch._constants, **dict.fromkeys(name for name in absent if name in kernel.arg_names)}
    first_integer = len(kernel.arg_names) - len(launch._constants) - len(launch._integers)
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif i < first_integer:
            signature[name] = "*fp32" if name in _FLOATS else f"*{dtype}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch._options)


def _usage(compiled) -> Usage:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        texts = [
            subprocess.run([_tools() / "cuobjdump", option, file.name], capture_output=True, text=True).stdout
            for option in ("-res-usage", "-sass")
        ]
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*? LOCAL:(\d+)", texts[0]).groups())
    instructions = len(re.findall(r"/\*[0-9a-f]{4,}\*/\s+[^/;]+;", texts[1]))
    kinds = [kind for kind in ("wgmma", "tcgen05.mma", "mma.sync") if kind in compiled.asm["ptx"]]
    return Usage(registers, compiled.metadata.shared, kinds[0] if kinds else "none", instructions, stack + local)


def _problem(text, dtype):
    from dataclasses import replace

    import torch

    from resnext_kernels.problem import ConvProblem

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    return replace(ConvProblem.parse(text), dtype=dtype, layout="nhwc", device="cuda")


def _launches(name, variant, dtype, architecture):
    """(name, launch, the arguments that are None) of each kernel that a case launches."""
    from resnext_kernels.backends import triton as backend
    from resnext_kernels.triton_kernels import conv_plans

    if name == "images":
        shape = (256, 256, 56, 56)
        yield "bn_stats", backend._stats_plan(shape)[0], ()
        yield "merge", backend._merge_plan(64, 256), ()
        yield "affine_act", backend._affine_plan(shape, "relu"), ()
        yield "affine_act_backward", backend._affine_backward_plan(shape, "relu"), ("y",)
        of_tiles, of_all, _ = backend._reduce_plan(shape, "relu")
        yield "bn_act_reduce", of_tiles, ("y",)
        yield "sum", of_all, ()
        return
    problem = _problem(PROBLEMS[name], dtype)
    if variant == "dgrad":
        is_general = backend.configs.form(problem) == "gather"
        make = conv_plans.dgrad_by_gather if is_general else conv_plans.dgrad_strided
        yield variant, make(problem, architecture)[1], ("scale", "shift", "partials")
        return
    if variant in BACKWARD:
        makes_dz = variant == "wgrad dz"
        launch, merge, _ = backend._wgrad_plan(problem, architecture, (9, 1), "silu" if makes_dz else None)
        is_plain = backend.configs.form(problem) != "gather" and not makes_dz
        yield variant, launch, ("z", "scale", "shift", "a", "b", "c", "dz") if is_plain else ()
        if not makes_dz:
            yield "wgrad merge", merge, ()
        return
    absent = {"plain": ("scale", "shift", "partials"), "affine": ("partials",), "stats": ("scale", "shift")}[variant]
    activation = "silu" if variant == "affine" else "identity"
    yield variant, conv_plans.forward(problem, architecture, activation)[1], absent
    if variant == "plain" and backend.configs.form(problem) != "gather":
        yield "prepack", conv_plans.prepack(problem, backend.configs.pack(problem), 1)[0], ()


def _measure(case) -> dict[str, dict]:
    warnings.simplefilter("ignore")
    name, variant, dtype, architecture = case
    return {
        f"{name.strip('*')} {dtype} {kernel} sm_{architecture}": vars(
            _usage(_compile(launch, absent, dtype, architecture))
        )
        for kernel, launch, absent in _launches(*case)
    }


def cases(everything: bool) -> list[tuple]:
    strided = [name for name in PROBLEMS if name.endswith("strided*")]
    starred = [name for name in PROBLEMS if name.endswith("*") and name not in strided[2:]]
    by_rows = [name for name in PROBLEMS if not re.match(r"wide\b", name)]
    if everything:
        rest = [name for name in PROBLEMS if not name.endswith("*")]
        return [
            *itertools.product(starred, VARIANTS, ("fp16", "fp32"), ARCHITECTURES),
            *itertools.product(rest, ["stats"], ("fp16", "fp32"), (80, 90)),
            *itertools.product(starred, ["stats"], ["bf16"], (80, 90, 100)),
            *itertools.product(["images"], [""], ("fp16", "bf16", "fp32"), ARCHITECTURES),
            *itertools.product(strided, ["dgrad"], ("fp16", "bf16", "fp32"), ARCHITECTURES),
            *itertools.product([*PROBLEMS], ["wgrad"], ("fp16", "fp32"), ARCHITECTURES),
            *itertools.product(by_rows, ["wgrad dz"], ["fp16"], ARCHITECTURES),
            *itertools.product(starred[:6], ["wgrad"], ["bf16"], (80, 90, 100)),
            *itertools.product(starred[:5], ["wgrad dz"], ["bf16"], (80, 90, 100)),
            ("pairs*", "plain", "bf16", 100),
        ]
    return [
        *itertools.product(starred, ["stats"], ["fp16"], (80, 90)),
        *itertools.product(starred[:3], ["affine"], ["fp16"], [120]),
        *itertools.product(starred[::5], ["stats"], ["fp32"], [86]),
        *itertools.product(strided, ["dgrad"], ["fp16"], [90]),
        *itertools.product(strided[:3], ["dgrad"], ["fp32"], [80]),
        *itertools.product(starred, ["wgrad"], ["fp16"], [90]),
        *itertools.product(starred[1:5:3], ["wgrad dz"], ["fp16"], [80]),
        *itertools.product(starred[1::4], ["wgrad"], ["fp32"], [80]),
        ("images", "", "fp16", 90), ("images", "", "fp32", 80), ("pairs*", "plain", "bf16", 100),
    ]  # fmt: skip


def measure(everything: bool) -> dict[str, dict]:
    with ProcessPoolExecutor(2) as pool:
        return {name: usage for found in pool.map(_measure, cases(everything)) for name, usage in found.items()}


def record(usages: dict[str, dict]):
    import triton

    before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    rows = before["kernels"] if before.get("triton") == triton.__version__ else {}
    rows.update({name: [usage[field] for field in RECORDED] for name, usage in usages.items()})
    text = json.dumps({"triton": triton.__version__, "fields": RECORDED, "kernels": rows}, indent=1)
    RECORD.write_text(re.sub(r"\[[^\[\]]*?\]", lambda match: f"[{' '.join(match[0][1:-1].split())}]", text) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    found = measure(options.all)
    print(json.dumps(found))
    if options.record:
        record(found)
