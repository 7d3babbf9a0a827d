"""A stage in a process of its own: python -m gpu_check.stage NAME JOURNAL OUT DEADLINE [--dry].

It writes a journal, a line of JSON for every event, so that what was measured outlives a killed process. Started again
on the same journal it goes on behind the item that ended the process.
"""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

POISONED = 75  # the exit status of a process whose CUDA context is lost


def read(journal: Path) -> list[dict]:
    """The events so far; a line that is still being written is not one."""
    if not journal.exists():
        return []
    lines = journal.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


class Stage:
    """What a stage's `main` is given: where to run, how long, and where its rows go."""

    def __init__(self, journal: Path, out: Path, deadline: float, dry: bool):
        self.journal, self.out, self.deadline, self.dry = journal, out, deadline, dry
        self.device = "cpu" if dry else "cuda"
        events = read(journal)
        self.rows = [event["row"] for event in events if "row" in event]
        self._skipped = [event["skipped"]["item"] for event in events if "skipped" in event]
        self._begun = {event["begin"] for event in events if "begin" in event}
        self._file = journal.open("a")

    def seconds_left(self) -> float:
        return self.deadline - time.time()

    def _write(self, **event):
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()

    def row(self, **row):
        if self.dry:
            row["dry"] = True  # never to be taken for a measurement
        if row in self.rows:
            return  # of the process before
        self.rows.append(row)
        self._write(row=row)

    def fail(self, item: str, error: str):
        print(f"{item}: {error}", file=sys.stderr)
        self._write(error={"item": item, "error": error})

    def skip(self, item: str, why: str):
        """Of what this machine cannot run."""
        if item in self._skipped:
            return  # by the process before
        self._write(skipped={"item": item, "why": why})

    def end(self, headline: str):
        self._write(end=headline)

    def each(self, items: dict, needs_s: float = 1.0):
        """Runs `items`, name -> function that returns a row, rows or nothing, while `needs_s` seconds are left.

        One that raises is an error of its own; if it took the CUDA context with it, the process ends.
        """
        for name, function in items.items():
            if name in self._begun:
                continue
            if self.seconds_left() < needs_s:
                self._write(left=name)
                continue
            self._write(begin=name)
            try:
                result = function()
                self.synchronize()
            except Exception:
                self.fail(name, traceback.format_exc())
                self._leave_if_poisoned()
                result = None
            for row in [result] if isinstance(result, dict) else result or []:
                self.row(item=name, **row)
            self._write(done=name)

    def synchronize(self):
        """Errors of kernels show here at the latest, so that they are of the item that ran them."""
        if self.device == "cuda" and "torch" in sys.modules:
            sys.modules["torch"].cuda.synchronize()

    def _leave_if_poisoned(self):
        try:
            self.synchronize()
        except Exception:
            self._file.close()
            os._exit(POISONED)


def main(name, journal, out, deadline, *dry) -> int:
    stage = Stage(Path(journal), Path(out), float(deadline), bool(dry))
    try:
        headline = importlib.import_module(f"gpu_check.{name}").main(stage)
    except Exception:
        stage.fail(name, traceback.format_exc())
        headline = ""
    stage.end(headline)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
