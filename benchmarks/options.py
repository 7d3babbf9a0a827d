"""Command-line options that several suites have."""

import argparse


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number >= 1, got {text}")
    return int(text)


def add_timing(parser, *, rounds: int, seconds: float) -> None:
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"at most so many a row; default {rounds}")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"budget for a row; default {seconds}")


def add_compile(parser) -> None:
    parser.add_argument("--compile", action="store_true", help="torch.compile as one more baseline (slow to start)")
