"""What scripts/gpu_check.sh runs: __main__.py starts the stages, a module and a process each; stage.py is theirs."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
