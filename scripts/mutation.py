"""What mutate_cuda and mutate_triton share: judging defects one after the other, tests in forks."""

import argparse
import contextlib
import multiprocessing
import os
import resource
import time
from collections import Counter

# Of the tests of one defect: the slowest take a tenth of it, and what needs more hangs.
MOST_CPU_SECONDS = 120


def options(doc: str, subjects) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=subjects, help="one subject; all of them without")
    parser.add_argument(
        "--lines", default="", metavar="REGEX", help="only of lines that match, such as 'sync|cp_async'"
    )
    parser.add_argument("--every", type=int, default=1, help="only each N-th defect")
    parser.add_argument("--offset", type=int, default=0, help="from the K-th on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    return parser.parse_args()


def import_tests(files) -> None:
    """All that the tests import, once: the forks have it."""
    import pytest

    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", *files])


def passes(prepare, file: str, keyword: str) -> bool:
    """Whether tests pass after prepare(); in a fork, which need not import torch, and may crash or hang."""
    child = os.fork()
    if child == 0:
        import pytest
        import torch

        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_SECONDS, MOST_CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        torch.set_num_threads(1)
        prepare()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        os._exit(pytest.main(["-qx", "-p", "no:cacheprovider", "-k", keyword, file]))
    return os.waitpid(child, 0)[1] == 0


def judge(name: str, defects: list[tuple[str, int, str]], outcome, jobs: int) -> None:
    """Prints what survives of (source, line number, the line as it becomes) and how many are caught.

    outcome(name, *defect) is what notices it: "build", "tests", "nothing", or "same" if it is none.
    """
    counts, start = Counter(), time.monotonic()
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        results = [pool.apply_async(outcome, (name, *defect)) for defect in defects]
        for (source, number, line), result in zip(defects, results, strict=True):
            by = result.get()
            counts[by] += 1
            if by == "nothing":
                print(f"survives: {source}:{number + 1}: {line.strip()}", flush=True)
    seconds = (time.monotonic() - start) * jobs / max(len(defects), 1)
    judged = counts["tests"] + counts["nothing"]
    print(
        f"{name}: {counts['tests']} of {judged} defects caught by tests; of {len(defects)}, {counts['build']} do not "
        f"compile and {counts['same']} change nothing; {seconds:.1f} s each",
        flush=True,
    )
