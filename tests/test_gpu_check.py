"""scripts/gpu_check.sh without a GPU: its dry run, what it makes of stages that break, and its vectors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
STAGES = ["build", "vectors", "rates", "numerics", "hazards", "speed", "models"]
FIELDS = {"status", "seconds", "headline", "rows", "errors", "skipped", "left"}


def run(out, *arguments, script=SCRIPTS / "gpu_check.sh"):
    """(The exit status, what it printed, its results.)"""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = [script, "--dry", "--out", out, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert list(out.glob("*.json")), done.stdout + done.stderr
    (results,) = (path for path in out.glob("*.json") if not path.name.startswith("golden"))
    assert results.with_suffix(".log").exists()
    return done.returncode, done.stdout, json.loads(results.read_text())


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    sys.path.insert(0, str(SCRIPTS))
    from gpu_check import native

    sys.path.remove(str(SCRIPTS))
    if reason := native.why_no_emulation():
        pytest.skip(reason)
    return run(tmp_path_factory.mktemp("dry"))


def test_every_stage_runs_dry(dry):
    status, printed, results = dry
    assert list(results["stages"]) == STAGES
    errors = [error for stage in results["stages"].values() for error in stage["errors"]]
    assert (status, errors) == (0, []), errors
    for name, stage in results["stages"].items():
        assert set(stage) == FIELDS and stage["status"] == "ok" and stage["left"] == [], name
        assert stage["seconds"] > 0 and stage["headline"] and stage["rows"], name
        # Whatever is made of the file, no number of a CPU is taken for one of a GPU.
        assert all(row["dry"] for row in stage["rows"]), name


def test_the_header_says_what_ran(dry):
    header = dry[2]["header"]
    assert header["dry"] is True
    assert {"date", "cpu", "gpu", "torch", "triton", "nvcc", "commit", "platform"} <= set(header)


def test_the_table_comes_last(dry):
    table = dry[1].rpartition("dry run: nothing here is a measurement")[2]
    assert re.findall(r"^[│|] (\w+) +[│|] ok", table, re.MULTILINE) == STAGES
    assert table.splitlines()[-2].startswith("results: ")


def test_every_part_of_a_stage_has_rows(dry):
    rows = {name: stage["rows"] for name, stage in dry[2]["stages"].items()}
    assert {row["against"] for row in rows["vectors"]} == {"emulation", "golden-emulation"}
    assert {row["check"] for row in rows["hazards"]} == {"bits", "graph", "stream", "beyond 2^31", "sanitizer"}
    contests = {(row["contest"], row["pass"]) for row in rows["speed"] if "pass" in row}
    assert {("all", "forward"), ("all", "dgrad"), ("all", "wgrad"), ("compile", "train")} <= contests
    assert {row["mode"] for row in rows["models"]} == {"eager", "profile", "compiled", "eager beside compiled"}
    # A column for each of ours, and for the others.
    ours = {row["way"] for row in rows["speed"] if row.get("ours")}
    assert {row["backend"] for row in rows["numerics"]} == ours == {"cpu", "reference"}
    assert {row["backend"] for row in rows["hazards"] if "backend" in row} == ours
    forward = {row["way"] for row in rows["speed"] if row.get("pass") == "forward"}
    assert forward == ours | {"cudnn nchw", "cudnn nhwc", "copy"}
    rates = {row["rate"] for row in rows["rates"]}
    assert {"copy torch", "copy plain kernel", "read", "mma m16n8k16 bf16", "mma m16n8k8 fp16", "ldmatrix x4"} <= rates


# Stages in the place of real ones: `models` breaks in every way but one, `speed` never ends.
BREAKING = """
import os

def main(stage):
    def poison():
        def lost():
            raise RuntimeError("the context is lost")
        stage.synchronize = lost
        return {"number": 0}

    items = {"first": lambda: {"number": 1}, "raises": lambda: 1 / 0, "crashes": lambda: os._exit(3),
             "poisons": poison, "last": lambda: {"number": 2}}
    stage.each(items, 0)
    return f"{len(stage.rows)} rows"
"""
ENDLESS = """
import time

def main(stage):
    stage.each({"quick": lambda: {"number": 1}, "endless": lambda: time.sleep(1000)}, 0)
    return "never"
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    scripts = shutil.copytree(SCRIPTS / "gpu_check", folder / "scripts" / "gpu_check").parent
    shutil.copy(SCRIPTS / "gpu_check.sh", scripts)
    (scripts / "gpu_check" / "models.py").write_text(BREAKING)
    (scripts / "gpu_check" / "speed.py").write_text(ENDLESS)
    stages = ("models", "nonsense", "speed", "--minutes", "0.1")
    return run(folder / "out", *stages, script=scripts / "gpu_check.sh")


def test_a_stage_goes_on_behind_the_item_that_broke(broken):
    status, printed, results = broken
    models = results["stages"]["models"]
    assert status == 1 and models["status"] == "failed"
    assert [row["number"] for row in models["rows"]] == [1, 2] and models["headline"] == "2 rows"
    errors = {error["item"]: error["error"] for error in models["errors"]}
    assert list(errors) == ["raises", "poisons", "crashes"]
    assert "ZeroDivisionError" in errors["raises"] and "the context is lost" in errors["poisons"]
    assert errors["crashes"].endswith("its process ended with status 3")
    assert "crashes: its process ended with status 3" in printed


def test_an_unknown_stage_stops_no_other(broken):
    (error,) = broken[2]["stages"]["nonsense"]["errors"]
    assert error["error"] == f"expected one of {', '.join(STAGES)}, got nonsense"
    assert list(broken[2]["stages"]) == ["models", "nonsense", "speed"]


def test_a_stage_whose_time_is_up_keeps_its_rows(broken):
    speed = broken[2]["stages"]["speed"]
    assert speed["status"] == "failed" and [row["number"] for row in speed["rows"]] == [1]
    (error,) = speed["errors"]
    assert error["item"] == "endless" and error["error"].endswith("killed: its time was up")


@pytest.fixture
def vectors(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from gpu_check import vectors

    return vectors


def test_every_wrapper_with_ptx_has_vectors(vectors):
    text = (ROOT / "csrc" / "cuda" / "platform.h").read_text()
    functions = re.findall(
        r"__device__ __forceinline__ [\w:]+\*? (\w+)(?:<\w+>)?\([^{;]*\{(.*?)\n?\}\n", text, re.DOTALL
    )
    with_ptx = {name for name, body in functions if "asm" in body or "_sync(" in body}
    assert {"cp_async", "ldmatrix_x4", "mma_m16n8k8", "pack"} <= with_ptx
    # Every copy is committed.
    assert with_ptx - {"cp_async_commit"} == {name.partition("<")[0] for name in vectors.FORMATS} & with_ptx


class Noted:
    """A stage's record."""

    def __init__(self):
        self.rows, self.failed = [], []

    def row(self, **row):
        self.rows.append(row)

    def fail(self, item, error):
        self.failed.append(item)


@pytest.mark.parametrize(("capability", "failed"), [("sm_90", ["fused", "mma_m16n8k8<Half>"]), ("sm_80", ["fused"])])
def test_a_recording_is_met_bit_for_bit(vectors, tmp_path, capability, failed):
    """Of another capability, but for sums that hardware rounds its own way."""
    words = {name: bytes(4 * vectors.BLOCKS * vectors.LANES * len(out)) for name, (_, out) in vectors.FORMATS.items()}
    vectors.record(words, "sm_90", tmp_path / "golden.json")
    changed = {name: (data[:-1] + b"\x01" if name in ("fused", "mma_m16n8k8<Half>") else data)
               for name, data in words.items()}  # fmt: skip
    stage = Noted()
    met = vectors._against_recordings(stage, changed, capability, [tmp_path / "golden.json"])
    assert sorted(stage.failed) == [f"{name} against golden" for name in failed]
    assert len(met) == (len(words) if capability == "sm_90" else 0)
    assert sum(not row["equal"] for row in stage.rows) == 2


def test_floats_may_be_close_where_moderate_and_any_nan_is_one(vectors):
    import struct

    def words(*values):
        return struct.pack(f"<{len(values)}f", *values)

    nan = float("nan")
    assert vectors.difference("fused", words(nan), b"\xff\xff\xff\x7f") is not None
    assert vectors.difference("fused", words(nan), b"\xff\xff\xff\x7f", nan_is_nan=True) is None
    assert vectors.difference("exponential", words(9, 1.0), words(1, 1.0000004), close=1e-6) is None
    found = vectors.difference("exponential", words(9, 1.0), words(1, 1.1), close=1e-6)
    assert found.startswith("1 of 2 words differ")
