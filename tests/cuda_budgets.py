"""What nvcc makes of csrc/cuda: registers, memory and the instructions of the hot loop of every kernel.

python tests/cuda_budgets.py records it in tests/cuda/budgets.json, which test_cuda_gates.py holds later builds to.
"""

import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "csrc" / "cuda"
RECORD = Path(__file__).parent / "cuda" / "budgets.json"
# What a default build ships, sm_80 and sm_90 with its PTX, and what its users run: sm_86 and sm_89 the former (or,
# built there, the same for themselves), sm_100 and sm_120 what becomes of the PTX.
ARCHITECTURES = {"compute_80": ("sm_80", "sm_86", "sm_89"), "compute_90": ("sm_90", "sm_100", "sm_120")}


class ToolMissing(Exception):
    pass


@dataclass
class Usage:
    """Of one kernel on one architecture; what follows `instructions` is counted in its hot loop."""

    registers: int
    shared: int
    instructions: int
    hmma: int
    ldsm: int
    ldgsts: int
    stsm: int
    stg: int
    bar: int
    # In bytes and, in all of the kernel, in loads and stores of local memory; never recorded, as none is allowed.
    stack: int = 0
    local: int = 0


RECORDED = [field.name for field in fields(Usage)][:-2]
OPCODES = {"hmma": "HMMA", "ldsm": "LDSM", "ldgsts": "LDGSTS", "stsm": "STSM", "stg": "STG.E.128", "bar": "BAR"}


def find_nvcc() -> str:
    """As CMakeLists.txt finds it."""
    packages = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin", str(packages)])
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"), path=path)
    if nvcc is None:
        raise ToolMissing("no nvcc in CUDACXX, PATH, /usr/local/cuda/bin or this Python's packages")
    return nvcc


def find_cuobjdump(nvcc: str) -> str:
    triton = find_spec("triton")
    folders = triton.submodule_search_locations if triton else []
    packages = [Path(folder, "backends", "nvidia", "bin") for folder in folders]
    path = os.pathsep.join(map(str, [*packages, Path(nvcc).parent]))
    cuobjdump = shutil.which("cuobjdump", path=path) or shutil.which("cuobjdump")
    if cuobjdump is None:
        raise ToolMissing("no cuobjdump in triton's package, beside nvcc or in PATH")
    return cuobjdump


def run(*command) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def nvcc_version(nvcc: str) -> str:
    return re.search(r"V([\d.]+)", run(nvcc, "--version"))[1]


# How kernels name their enumerators' values; and the HMMAs that a width has for a tile of 16x16 outputs, of 16x16
# positions and inputs in the weights' gradient.
WIDTHS = {"0": "paired", "1": "one step", "2": "two steps"}
AROUND = {"0": "plain", "1": "stats", "2": "prologue"}
TILE_HMMAS = {"paired": 12, "one step": 18, "two steps": 36}
WGRAD_TILE_HMMAS = 18


def short_names(mangled: list[str]) -> dict[str, str]:
    """Each kernel's name and template arguments."""
    demangled = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    names = {}
    for symbol, name in zip(mangled, demangled.splitlines(), strict=True):
        name = re.sub(r"\(rk::cuda::Width\)(\d)", lambda match: WIDTHS[match[1]], name)
        name = re.sub(r"\(rk::cuda::Around\)(\d)", lambda match: AROUND[match[1]], name)
        name = re.sub(r"_GLOBAL__N__\w+::|\(anonymous namespace\)::|rk::cuda::|rk::|^void |_kernel\b", "", name)
        name = re.sub(r"\([\w:]+\)(?=\d)", "", name).replace("> >", ">>")
        names[symbol] = re.sub(r"\w+Traits<(.*?)>", r"\1", name).partition("(")[0]
    return names


BRANCH = re.compile(r"BRA.*? (0x[0-9a-f]+)")


def hot_loop(code: list[tuple[int, str]]) -> list[str]:
    """The instructions from the target of a backward branch to it: of the branches around the most HMMAs the nearest;
    nothing without HMMAs."""
    best, most = (0, 0), 0
    hmmas = [address for address, text in code if text.startswith(OPCODES["hmma"])]
    for address, text in code:
        branch = BRANCH.match(text)
        if not branch or (target := int(branch[1], 16)) > address:
            continue
        inside, length = sum(target <= hmma <= address for hmma in hmmas), address - target
        if inside > most or (inside == most > 0 and length < best[1] - best[0]):
            best, most = (target, address), inside
    return [text for address, text in code if best[0] <= address <= best[1]] if most else []


INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@\S+ )?\s*([^;]+?)\s*;")
RESOURCES = re.compile(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def functions(sass: str):
    """(architecture, mangled name, [(address, instruction without its predicate)]) of every kernel."""
    for section in re.split(r"\bcode for ", sass)[1:]:
        for function in section.split("Function : ")[1:]:
            code = [(int(address, 16), text) for address, text in INSTRUCTION.findall(function)]
            yield section.split(None, 1)[0], function.split(None, 1)[0], code


def resources(listing: str) -> dict:
    """(registers, stack, shared memory) by architecture and mangled name."""
    return {
        (section.split(None, 1)[0], name): tuple(map(int, numbers))
        for section in re.split(r"\barch = ", listing)[1:]
        for name, *numbers in RESOURCES.findall(section)
    }


def measure(nvcc: str, cuobjdump: str, source: Path, virtual: str, folder: str) -> dict[tuple[str, str], Usage]:
    """Of every kernel of a file, by architecture and mangled name."""
    fatbin = Path(folder, f"{source.stem}.{virtual}.fatbin")
    code = f"arch={virtual},code=[{','.join(ARCHITECTURES[virtual])}]"
    run(nvcc, "-std=c++17", "-fmad=false", "-I", SOURCES.parent, "-gencode", code, "-fatbin", source, "-o", fatbin)
    usages, used = {}, resources(run(cuobjdump, "-res-usage", fatbin))
    for architecture, name, instructions in functions(run(cuobjdump, "-sass", fatbin)):
        registers, stack, shared = used[architecture, name]
        local = sum(text.startswith(("LDL", "STL")) for _, text in instructions)
        loop = hot_loop(instructions)
        counts = [sum(text.startswith(opcode) for text in loop) for opcode in OPCODES.values()]
        usages[architecture, name] = Usage(registers, shared, len(loop), *counts, stack, local)
    return usages


def measure_all(nvcc: str, cuobjdump: str) -> dict[str, dict[str, Usage]]:
    """Of every kernel of csrc/cuda, by short name and architecture."""
    sources = sorted(SOURCES.glob("*.cu"), key=lambda file: file.stat().st_size, reverse=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(measure, nvcc, cuobjdump, file, a, folder) for file in sources for a in ARCHITECTURES]
        found = {key: usage for job in jobs for key, usage in job.result().items()}
    names = short_names(sorted({name for _, name in found}))
    assert len(set(names.values())) == len(names), names
    result = {}
    for (architecture, name), usage in sorted(found.items(), key=lambda item: names[item[0][1]]):
        result.setdefault(names[name], {})[architecture] = usage
    return result


def record(usages: dict[str, dict[str, Usage]], version: str):
    """One line for a kernel on an architecture."""
    kernels = {
        name: {architecture: [getattr(usage, field) for field in RECORDED] for architecture, usage in each.items()}
        for name, each in usages.items()
    }
    text = json.dumps({"nvcc": version, "fields": RECORDED, "kernels": kernels}, indent=1)
    RECORD.write_text(re.sub(r"\[[^\[\]]*?\]", lambda match: f"[{' '.join(match[0][1:-1].split())}]", text) + "\n")


def table(usages: dict[str, dict[str, Usage]]) -> str:
    """For every family of kernels and architecture the most registers and, in hot loops, instructions a tile."""
    worst = {}
    for name, each in usages.items():
        family, _, arguments = name.partition("<")
        width = next((width for width in TILE_HMMAS if width in arguments), None)
        for architecture, usage in each.items():
            tile_hmmas = WGRAD_TILE_HMMAS if "wgrad" in family else TILE_HMMAS.get(width, 0)
            tile = usage.instructions * tile_hmmas / usage.hmma if usage.hmma else 0
            cell = worst.setdefault(f"{family} {width or ''}", {}).setdefault(architecture, [0, 0])
            cell[:] = max(cell[0], usage.registers), max(cell[1], tile)
    architectures = [architecture for each in ARCHITECTURES.values() for architecture in each]
    lines = ["most registers, instructions a tile".ljust(40) + "".join(a.rjust(10) for a in architectures)]
    for family, cells in worst.items():
        texts = [f"{registers}, {tile:.0f}" if tile else f"{registers}" for registers, tile in cells.values()]
        lines.append(family.ljust(40) + "".join(text.rjust(10) for text in texts))
    return "\n".join(lines)


if __name__ == "__main__":
    nvcc = find_nvcc()
    record(measure_all(nvcc, find_cuobjdump(nvcc)), nvcc_version(nvcc))
