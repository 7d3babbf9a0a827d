"""What each PTX wrapper of csrc/cuda/platform.h makes of seeded words, held against recordings and the emulation.

tests/cuda/golden/*.json are recordings of GPUs; one of this GPU's compute capability must be met bit for bit, and what
there is none for is recorded in the results folder. The emulation, which the tests of the kernels rest on, must give
the same, but for sums and functions that the hardware rounds its own way.
"""

import base64
import hashlib
import json
import random
import struct
import tempfile
from pathlib import Path

import torch

from . import ROOT, native

GOLDEN = ROOT / "tests" / "cuda" / "golden"
LANES = 32
BLOCKS = 16  # one half of any bits, the other of moderate values
# The words of a lane, in and out: h and b are two values of 16 bits, f is a float, w has no format.
FORMATS = {
    "cp_async<4>": ("wwwww", "w"), "cp_async<8>": ("wwwww", "ww"), "cp_async<16>": ("wwwww", "wwww"),
    "cp_async_wait<1>": ("wwwwwwww", "wwwwwwww"), "ldmatrix_x4": ("wwww", "wwww"),
    "ldmatrix_x4_trans": ("wwww", "wwww"), "stmatrix_x4": ("wwww", "wwww"),
    "mma_m16n8k16<Half>": ("hhhhhhffff", "ffff"), "mma_m16n8k16<BFloat16>": ("bbbbbbffff", "ffff"),
    "mma_m16n8k8<Half>": ("hhhffff", "ffff"), "mma_m16n8k8<BFloat16>": ("bbbffff", "ffff"),
    "shuffle_xor": ("f", "wwwww"), "fused": ("fff", "f"), "maximum": ("ff", "f"), "exponential": ("f", "f"),
    "quick_sigmoid": ("f", "f"), "pack<Half>": ("ff", "h"), "pack<BFloat16>": ("ff", "b"),
    "unpack<Half>": ("h", "ff"), "unpack<BFloat16>": ("b", "ff"),
}  # fmt: skip
# How far hardware may be from the emulation on moderate values, absolutely: sums of up to 17 terms below 4, and
# functions of values between -2 and 2.
CLOSE = {"mma_m16n8k16<Half>": 1e-4, "mma_m16n8k16<BFloat16>": 1e-4, "mma_m16n8k8<Half>": 1e-4,
         "mma_m16n8k8<BFloat16>": 1e-4, "exponential": 4e-6, "quick_sigmoid": 2e-5}  # fmt: skip
# (kept bits, set bits) that leave the sign, the fraction and an exponent of -7 to 0.
MODERATE = {"h": (0x9FFF9FFF, 0x20002000), "b": (0x83FF83FF, 0x3C003C00), "f": (0x83FFFFFF, 0x3C000000),
            "w": (0xFFFFFFFF, 0)}  # fmt: skip


def inputs(name: str) -> list[int]:
    """The words of every lane, lane after lane; from the wrapper's name alone, on any machine the same."""
    formats, words = FORMATS[name][0], []
    generator = random.Random(name)
    for block in range(BLOCKS):
        for _ in range(LANES):
            for kind in formats:
                keep, put = MODERATE[kind] if block >= BLOCKS // 2 else (0xFFFFFFFF, 0)
                words.append(generator.getrandbits(32) & keep | put)
    return words


def _padded(words: list[int], count: int) -> list[int]:
    """A lane's words begin at a multiple of 16 bytes."""
    gap = [0] * (-count % 4)
    return [word for i in range(0, len(words), count) for word in (*words[i : i + count], *gap)]


def _bytes(words) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def _words(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data)


def outputs(library: native.Library, device: str) -> dict[str, bytes]:
    """Wrapper -> the words that it made."""
    results, entry = {}, 0
    while name := library.text("vectors_name", entry):
        formats, words = FORMATS[name], inputs(name)
        if (len(formats[0]), len(formats[1])) != tuple(
            library.number(f"vectors_{way}", entry) for way in ("in", "out")
        ):
            raise ValueError(f"{name}: vectors.cu has other words than {formats}")
        given = torch.frombuffer(bytearray(_bytes(_padded(words, len(formats[0])))), dtype=torch.int32).to(device)
        made = torch.full((BLOCKS * LANES * len(formats[1]),), -1, dtype=torch.int32, device=device)
        stream = torch.cuda.current_stream().cuda_stream if device == "cuda" else 0
        library.call("vectors_run", entry, given.data_ptr(), made.data_ptr(), BLOCKS, stream)
        results[name] = made.cpu().numpy().astype("<i4").tobytes()
        entry += 1
    if set(results) != set(FORMATS):
        raise ValueError(f"vectors.cu has not the wrappers of vectors.py: {sorted(set(results) ^ set(FORMATS))}")
    return results


def _float(word: int) -> float:
    return struct.unpack("<f", struct.pack("<I", word))[0]


def difference(name: str, got: bytes, expected: bytes, *, nan_is_nan=False, close: float = 0.0) -> str | None:
    """The first word that differs; of floats any NaN may count as every other, and `close` is of moderate values."""
    formats, wrong, first = FORMATS[name][1], 0, None
    pairs = list(zip(_words(got), _words(expected), strict=True))
    for i, (mine, theirs) in enumerate(pairs):
        if mine == theirs:
            continue
        if formats[i % len(formats)] == "f" and (nan_is_nan or close):
            a, b = _float(mine), _float(theirs)
            if close and i < len(pairs) // 2:
                continue
            if (a != a and b != b) or abs(a - b) <= close:
                continue
        wrong += 1
        first = i if first is None else first
    if first is None:
        return None
    lane, word = divmod(first, len(formats))
    block, lane = divmod(lane, LANES)
    place = f"block {block} lane {lane} word {word}"
    return f"{wrong} of {len(pairs)} words differ; {place}: expected {pairs[first][1]:08x}, got {pairs[first][0]:08x}"


def _digest(name: str) -> str:
    return hashlib.sha256(_bytes(inputs(name))).hexdigest()[:16]


def record(results: dict[str, bytes], capability: str, path: Path) -> None:
    wrappers = {
        name: {"inputs": _digest(name), "outputs": base64.b64encode(data).decode()} for name, data in results.items()
    }
    path.write_text(json.dumps({"capability": capability, "wrappers": wrappers}, indent=1) + "\n")


def recorded(path: Path) -> tuple[str, dict[str, bytes]]:
    """(Its compute capability, wrapper -> words), of wrappers whose inputs are still the same."""
    golden = json.loads(path.read_text())
    words = {
        name: base64.b64decode(each["outputs"])
        for name, each in golden["wrappers"].items()
        if name in FORMATS and each["inputs"] == _digest(name)
    }
    return golden["capability"], words


def _against_recordings(stage, results, capability, paths):
    """Rows for each recording; those of another capability may differ where hardware rounds its own way."""
    met = set()
    for path in paths:
        theirs, golden = recorded(path)
        for name, words in golden.items():
            found = difference(name, results[name], words)
            strict = theirs == capability or name not in CLOSE
            stage.row(wrapper=name, against=path.stem, equal=found is None, difference=found)
            if found and strict:
                stage.fail(f"{name} against {path.stem}", found)
            if theirs == capability:
                met.add(name)
    return met


def _against_emulation(stage, results, emulated):
    for name, words in emulated.items():
        found = difference(name, results[name], words, nan_is_nan=True, close=CLOSE.get(name, 0.0))
        stage.row(wrapper=name, against="emulation", equal=results[name] == words, difference=found)
        if found:
            stage.fail(f"{name} against the emulation", found)


def main(stage) -> str:
    capability = "emulation" if stage.dry else "sm_{}{}".format(*torch.cuda.get_device_capability())
    with tempfile.TemporaryDirectory() as scratch:
        gpu, cpu = native.for_both("vectors.cu", scratch, "sm_90" if stage.dry else capability, stage.dry)
        emulated = outputs(native.Library(cpu), "cpu") if cpu else None
        results = emulated if stage.dry else outputs(native.Library(gpu), stage.device)
    if cpu is None:
        stage.skip("the emulation", native.why_no_emulation())
    if gpu is None:
        stage.skip("compilation by nvcc", "no nvcc")
    if results is None:
        return "nothing that runs here"
    record_path = stage.out / f"golden-{capability}.json"
    record(results, capability, record_path)
    # Dry, the recording just made takes the place of one of a GPU.
    paths = [record_path] if stage.dry else sorted(GOLDEN.glob("*.json"))
    met = _against_recordings(stage, results, capability, paths)
    if emulated:
        _against_emulation(stage, results, emulated)
    close = sum(row["against"] == "emulation" and not row["equal"] for row in stage.rows)
    new = len(results) - len(met)
    return f"{len(results)} wrappers; {len(met)} held to recordings, {new} new; {close} round unlike the emulation"
