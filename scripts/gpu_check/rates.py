"""What this GPU gives: copies, reads of the L2 cache, mma.sync, ldmatrix; in plain kernels, rates.cu."""

import tempfile

import torch

from . import native
from .clock import METHOD, Clock

MIB = 1 << 20
THREADS, WARPS, CHAINS = 256, 8, 8  # as in rates.cu
BLOCKS_PER_SM = 2
# What rates_cycles does -> flops or, of ldmatrix, bytes of one instruction.
INSTRUCTIONS = {
    "mma m16n8k16 fp16": (0, 2 * 16 * 8 * 16), "mma m16n8k16 bf16": (1, 2 * 16 * 8 * 16),
    "mma m16n8k8 fp16": (2, 2 * 16 * 8 * 8), "mma m16n8k8 bf16": (3, 2 * 16 * 8 * 8), "ldmatrix x4": (4, 512),
}  # fmt: skip


class Rates:
    def __init__(self, stage, library):
        self.dry, self.device, self.kernels = stage.dry, stage.device, library
        self.clock = Clock(stage.dry)
        self.sms = 1 if stage.dry else torch.cuda.get_device_properties(0).multi_processor_count

    def _stream(self) -> int:
        return 0 if self.dry else torch.cuda.current_stream().cuda_stream

    def _pairs(self, size: int, count: int):
        """(From, to), of `size` bytes each."""
        make = {"dtype": torch.int32, "device": self.device}
        return [(torch.randint(1 << 30, (size // 4,), **make), torch.zeros(size // 4, **make)) for _ in range(count)]

    def copy(self, size: int) -> list[dict]:
        """Of `size` bytes: as many are read as written."""
        sets = self._pairs(size, self.clock.sets(2 * size))

        def torchs(pair):
            return lambda: pair[1].copy_(pair[0])

        def ours(pair):
            return lambda: self.kernels.call(
                "rates_copy", pair[0].data_ptr(), pair[1].data_ptr(), size, self._stream()
            )  # fmt: skip

        ways = {"torch": torchs, "plain kernel": ours}
        recorded = {(way, "cold"): self.clock.record([make(pair) for pair in sets]) for way, make in ways.items()}
        recorded |= {(way, "warm"): self.clock.record([make(sets[0])]) for way, make in ways.items()}
        times = self.clock.us(recorded)
        if not all(torch.equal(*pair) for pair in sets):
            raise ArithmeticError("a copy is not what it was copied from")
        return [
            {"rate": f"copy {way}", "cache": cache, "bytes": 2 * size, "us": us, "gb_s": 2e-3 * size / us}
            for (way, cache), us in times.items()
        ]

    def read(self, size: int, rounds: int) -> dict:
        """By cp.async, which passes the L1 cache by; all blocks together read the buffer `rounds` times."""
        buffer = torch.randint(1 << 30, (size // 4,), dtype=torch.int32, device=self.device)
        blocks = 8 * self.sms
        steps = max(1, size * rounds // (blocks * THREADS * 16))
        out = torch.empty(blocks * THREADS, dtype=torch.int32, device=self.device)

        def run():
            self.kernels.call(
                "rates_read", buffer.data_ptr(), out.data_ptr(), size, steps, blocks, self._stream()
            )  # fmt: skip

        us = self.clock.us({"read": self.clock.record([run])})["read"]
        total = blocks * steps * THREADS * 16
        return {"rate": "read", "footprint": size, "bytes": total, "us": us, "gb_s": 1e-3 * total / us}

    def cycles(self, what: int, work: int, iterations: int) -> dict:
        blocks = BLOCKS_PER_SM * self.sms
        sums = torch.empty(blocks * THREADS, device=self.device)
        elapsed = torch.zeros(blocks, dtype=torch.int64, device=self.device)

        def run():
            self.kernels.call(
                "rates_cycles", what, sums.data_ptr(), elapsed.data_ptr(), iterations, blocks, self._stream()
            )  # fmt: skip

        us = self.clock.us({"": self.clock.record([run])})[""]
        per_sm = iterations * CHAINS * WARPS * BLOCKS_PER_SM
        cycles = float(elapsed.double().median())
        return {
            "us": us, "clocks": cycles / per_sm, "per_clock": work * per_sm / max(cycles, 1.0),
            "tera_s": work * per_sm * self.sms / us / 1e6, "sm_mhz": cycles / us,
        }  # fmt: skip


def main(stage) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        if stage.dry:
            _, path = native.for_both("rates.cu", scratch, "sm_90", dry=True)
            if path is None:
                stage.skip("the kernels", native.why_no_emulation())
                return "nothing that runs here"
        else:
            path = native.for_gpu("rates.cu", scratch, "sm_{}{}".format(*torch.cuda.get_device_capability()))
        rates = Rates(stage, native.Library(path))
        sizes, iterations = ((16 * 1024,), 2) if stage.dry else ((4 * MIB, 16 * MIB, 64 * MIB, 1024 * MIB), 4096)
        footprints = ((8192, 2),) if stage.dry else ((8 * MIB, 64), (24 * MIB, 32), (1024 * MIB, 1))
        items = {f"copy {size} bytes": lambda size=size: rates.copy(size) for size in sizes}
        items |= {f"read {size} bytes": lambda of=(size, rounds): rates.read(*of) for size, rounds in footprints}
        items |= {
            name: lambda name=name, of=of: {"rate": name} | rates.cycles(*of, iterations)
            for name, of in INSTRUCTIONS.items()
        }
        stage.row(rate="method", method=METHOD)
        stage.each(items)
    return _headline(stage.rows)


def _headline(rows) -> str:
    """The largest copy, the fastest read, and an instruction of each kind."""
    copies = {row["bytes"]: row["gb_s"] for row in rows if row["rate"] == "copy torch" and row["cache"] == "cold"}
    reads = [row["gb_s"] for row in rows if row["rate"] == "read"]
    parts = [f"copy {copies[max(copies)]:.0f} GB/s"] if copies else []
    parts += [f"L2 read {max(reads):.0f} GB/s"] if reads else []
    for row in rows:
        if row["rate"] in ("mma m16n8k16 bf16", "mma m16n8k8 bf16"):
            parts.append(f"{row['rate'].split()[1]} {row['tera_s']:.0f} TFLOP/s ({row['clocks']:.2f} clk)")
        if row["rate"] == "ldmatrix x4":
            parts.append(f"ldmatrix {row['per_clock']:.0f} B/clk")
    return ", ".join(parts)
