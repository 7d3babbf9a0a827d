"""How much of the Triton kernels the tests notice: small defects, one at a time, in triton's interpreter.

python scripts/mutate_triton.py [--only SUBJECT] [--lines REGEX] [--every N] [--offset K] prints each defect that
survives and, for each file of kernels, how many were caught. Defects are mechanical: a condition of a mask left out, a
comparison or a sum turned round, a number off by one, a bound exchanged, a store left out, a choice always or never
made. What the interpreter cannot show (races, layouts, a missing other=) is not among them.
"""

import ast
import os
import re
import shutil
import tempfile
from pathlib import Path

from mutation import import_tests, judge, options, passes

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "resnext_kernels/triton_kernels"
TESTS = "tests/triton_interpreted.py"
CONVOLUTIONS = "test_exact or test_gates or test_nothing or test_dgrad"
BACKWARD = "wgrad or test_backward or of_backward or channels"
IMAGES = "test_images or test_many or test_stat or test_the_var or test_of_the"
SUBJECTS = {
    "epilogue": f"{CONVOLUTIONS} or {IMAGES} or {BACKWARD}",
    "grouped_conv2d": CONVOLUTIONS,
    "grouped_conv2d_gather": CONVOLUTIONS,
    "grouped_conv2d_dgrad_strided": "test_dgrad or test_nothing",
    "grouped_conv2d_wgrad": BACKWARD,
    "grouped_conv2d_wgrad_gather": BACKWARD,
    "bn_stats": f"test_gates or {IMAGES}",
    "affine_act": IMAGES,
    "affine_act_backward": IMAGES,
    "bn_act_reduce": IMAGES,
}
TURNED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Add: "-",
          ast.Sub: "+", ast.Mult: "+", ast.FloorDiv: "%", ast.Mod: "//"}  # fmt: skip
EXCHANGED = {"tl.maximum": "tl.minimum", "tl.minimum": "tl.maximum"}


def replacements(node):
    """(the part that is replaced, the text in its place)."""

    def text(part):
        return f"({ast.unparse(part)})" if isinstance(part, ast.BinOp) else ast.unparse(part)

    if isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED:
        yield node, f"{text(node.left)} {TURNED[type(node.ops[0])]} {text(node.comparators[0])}"
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        yield node, text(node.left)
        yield node, text(node.right)
    elif isinstance(node, ast.BinOp) and type(node.op) in TURNED:
        yield node, f"({text(node.left)} {TURNED[type(node.op)]} {text(node.right)})"
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield node, str(node.value + 1)
    elif isinstance(node, ast.Call) and text(node.func) in EXCHANGED:
        yield node.func, EXCHANGED[text(node.func)]
    elif isinstance(node, ast.Call) and text(node.func) == "tl.where":
        yield node, text(node.args[1])
        yield node, text(node.args[2])
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield node, "pass"
    elif isinstance(node, ast.AugAssign):
        yield node, f"{text(node.target)} = {text(node.value)}"
    elif isinstance(node, ast.If):
        yield node.test, "True"
        yield node.test, "False"


def defects(source: str, lines: str):
    """(source, line number, the line as it becomes) of every defect of a source's kernels in lines that match."""
    text = (KERNELS / source).read_text()
    rows = text.splitlines()
    for function in ast.parse(text).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in (each for statement in function.body for each in ast.walk(statement)):
            for part, new in replacements(node):
                row = rows[part.lineno - 1]
                if part.lineno == part.end_lineno and re.search(lines, row):
                    yield source, part.lineno - 1, row[: part.col_offset] + new + row[part.end_col_offset :]


def outcome(name: str, source: str, number: int, line: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(shutil.copytree(KERNELS, Path(folder) / "triton_kernels"))
        rows = (changed / source).read_text().splitlines()
        rows[number] = line
        (changed / source).write_text("\n".join(rows) + "\n")
        return "nothing" if _passes(changed, name) else "tests"


def _passes(folder: Path, name: str) -> bool:
    def prepare():
        import resnext_kernels.triton_kernels

        # The kernels are imported only now, by the first of their launches.
        resnext_kernels.triton_kernels.__path__ = [str(folder)]

    return passes(prepare, TESTS, SUBJECTS[name])


def main() -> None:
    chosen = options(__doc__, SUBJECTS)
    os.chdir(ROOT)
    os.environ["TRITON_INTERPRET"] = "1"
    import_tests([TESTS])
    for name in [chosen.only] if chosen.only else SUBJECTS:
        assert _passes(KERNELS, name), "fails as it is"
        judge(name, [*defects(f"{name}.py", chosen.lines)][chosen.offset :: chosen.every], outcome, chosen.jobs)


if __name__ == "__main__":
    main()
