"""Checks and measures the CUDA and Triton kernels on this machine's GPU, unattended; one short table comes last.

Each stage has a process and a time budget of its own, and what one leaves of its budget goes to those behind it. A
process that crashes, hangs or loses its CUDA context is started again behind the item that did it. All results go to
<gpu>-<date>.json in --out, what the stages print to the .log beside it. The exit status is 1 if a stage failed.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import ROOT
from .stage import POISONED, read

# Stage -> (its share of the time, the seconds after which one item of it hangs).
STAGES = {
    "build": (140, 300), "vectors": (30, 60), "rates": (30, 60), "numerics": (120, 60), "hazards": (100, 300),
    "speed": (110, 90), "models": (80, 150),
}  # fmt: skip
MACHINE = "machine"  # what the head of the results comes from; in the table only if it fails
MINUTES = 8.5
GRACE_S = 3.0  # in which a stage whose time is up may end by itself
LONGEST_WRITE_S = 10.0  # results are on the disk no later, should this process be killed


@dataclass
class Result:
    """What became of a stage."""

    seconds: float = 0.0
    events: list = field(default_factory=list)
    errors: list = field(default_factory=list)  # of the process; items have theirs among the events

    def of(self, kind: str) -> list:
        return [event[kind] for event in self.events if kind in event]

    def as_dict(self) -> dict:
        errors = self.of("error") + self.errors
        ends = self.of("end")
        return {
            "status": "failed" if errors else "ok", "seconds": round(self.seconds, 2),
            "headline": ends[-1] if ends else "", "rows": self.of("row"), "errors": errors,
            "skipped": self.of("skipped"), "left": self.of("left"),
        }  # fmt: skip


def parse(argv):
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="stage", default=list(STAGES), help=f"of {', '.join(STAGES)}")
    parser.add_argument("--dry", action="store_true", help="tiny problems on the CPU, to see that all works: no GPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all stages together; default %(default)s")
    return parser.parse_args(argv)


class Checks:
    """Runs stages one after the other and keeps their merged results on the disk."""

    def __init__(self, options, scratch: Path):
        self.options, self.scratch = options, scratch
        self.console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
        # Tiny problems take longer on several threads, most of all beside other work.
        self.environment = os.environ | ({"OMP_NUM_THREADS": "1"} if options.dry else {})
        self.began = self.written = 0.0
        self.results: dict[str, Result] = {}
        self.header = {}
        self.json, self.log = None, scratch / "log"
        self.log.touch()

    def run(self) -> int:
        self._describe()
        self.began = time.time()
        self._name_files()
        known = [name for name in self.options.stages if name in STAGES]
        shares = sum(STAGES[name][0] for name in known)
        deadline = self.began
        for name in self.options.stages:
            if name in known:
                share, stall = STAGES[name]
                deadline += self.options.minutes * 60 * share / shares
                result = self._run_stage(name, deadline, stall)
            else:
                result = Result(errors=[{"item": name, "error": f"expected one of {', '.join(STAGES)}, got {name}"}])
            self.results[name] = result
            self._announce(name, result.as_dict())
            if name == "build" and not self.options.dry:
                self._describe()
            self._write()
        self.console.print(self._table())
        self.console.print(f"results: {self.json}\nlog: {self.log}", soft_wrap=True)
        return int(any(result.as_dict()["status"] == "failed" for result in self.results.values()))

    def _describe(self):
        """In a process of its own as well, since it asks the driver; again once there are new native modules."""
        journal = self.scratch / f"{MACHINE}.jsonl"
        journal.unlink(missing_ok=True)
        result = self._run_stage(MACHINE, time.time() + 30, 30)
        self.header = next(iter(result.of("row")), {}) | {"dry": self.options.dry}
        if result.as_dict()["status"] == "ok":
            del self.results[MACHINE]

    def _name_files(self):
        gpu = re.sub(r"[^a-z0-9]+", "-", str(self.header.get("gpu", "unknown")).lower()).strip("-")
        gpu = "dry" if self.options.dry else gpu
        stem = f"{gpu}-{datetime.datetime.fromtimestamp(self.began):%Y-%m-%d-%H%M%S}"
        self.options.out.mkdir(parents=True, exist_ok=True)
        self.json = self.options.out / f"{stem}.json"
        self.log = Path(shutil.move(self.log, self.options.out / f"{stem}.log"))

    def _run_stage(self, name, deadline, stall) -> Result:
        """Starts the stage's process, and again while it crashes on a new item each time."""
        journal, result, start = self.scratch / f"{name}.jsonl", Result(), time.time()
        self.results[name] = result
        while True:
            tried = len(result.of("begin"))
            status = self._watch(name, journal, deadline, stall, result, start)
            result.seconds = time.time() - start
            if result.of("end"):
                break
            self._blame(name, status, result)
            if len(result.of("begin")) == tried or time.time() >= deadline:
                break
        return result

    def _watch(self, name, journal, deadline, stall, result, start) -> int | str:
        """Waits for one process of the stage: its exit status, or why it was killed."""
        command = [sys.executable, "-m", "gpu_check.stage", name, journal, self.options.out, str(deadline)]
        command += ["--dry"] if self.options.dry else []
        with self.log.open("a") as log:
            print(f"== {name}", file=log, flush=True)
            # A process group of its own, so that what a stage started ends with it.
            process = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=os.setpgrp,
                env=self.environment,
            )  # fmt: skip
        progress, size, killed = time.time(), -1, None
        try:
            while process.poll() is None and not killed:
                time.sleep(0.05)
                now, known = time.time(), journal.stat().st_size if journal.exists() else 0
                if known != size:
                    progress, size = now, known
                if now > deadline + GRACE_S:
                    killed = "its time was up"
                elif now - progress > stall:
                    killed = f"it hung for {stall} seconds"
                elif now - self.written > LONGEST_WRITE_S and self.json:
                    result.events, result.seconds = read(journal), now - start
                    self._write()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        result.events = read(journal)
        return killed or status

    def _blame(self, name, status, result):
        """The error of a process that did not come to its end, for the item that it was in."""
        begun, done = result.of("begin"), set(result.of("done"))
        item = next((each for each in reversed(begun) if each not in done), name)
        if status == POISONED:
            return  # the item has its error
        how = f"killed: {status}" if isinstance(status, str) else f"its process ended with status {status}"
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        result.errors.append({"item": item, "error": f"the log ends\n{tail}\n{how}"})

    def _announce(self, name, result):
        self.console.print(f"{name}: {result['status']}, {result['seconds']:.1f} s, {result['headline']}", markup=False)
        for error in result["errors"][:5]:
            last = error["error"].strip().splitlines()[-1]
            self.console.print(f"  {error['item']}: {last}", markup=False)

    def _write(self):
        merged = {"header": self.header, "stages": {name: each.as_dict() for name, each in self.results.items()}}
        part = self.json.with_suffix(".part")
        part.write_text(json.dumps(merged, indent=1) + "\n")
        part.replace(self.json)
        self.written = time.time()

    def _table(self) -> Table:
        table = Table(title="dry run: nothing here is a measurement" if self.options.dry else self.header.get("gpu"))
        for title in ("stage", "status", "seconds", "headline"):
            table.add_column(title, justify="right" if title == "seconds" else "left")
        for name, each in ((name, result.as_dict()) for name, result in self.results.items()):
            notes = [f"{len(each[what])} {what}" for what in ("errors", "skipped", "left") if each[what]]
            status = ", ".join([each["status"], *notes])
            table.add_row(name, status, f"{each['seconds']:.1f}", each["headline"])
        return table


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as scratch:
        return Checks(parse(sys.argv[1:]), Path(scratch)).run()


if __name__ == "__main__":
    sys.exit(main())
