"""The command line: ``run`` measures, ``render`` writes tables and plots, ``case`` is what ``run`` calls per case."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.registry import TASKS, Options, get_task

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("task", choices=list(TASKS))
    common.add_argument(
        "--quick", action="store_true", help="smallest form: proves that it works, figures mean nothing"
    )
    common.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    data = argparse.ArgumentParser(add_help=False)
    where = os.environ.get("CELLXPERT_DATA")
    data.add_argument(
        "--data", type=Path, default=Path(where) if where else None, help="folder of h5ad files ($CELLXPERT_DATA)"
    )
    run = commands.add_parser("run", parents=[common, data], help="run what the results lack")
    run.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="METHOD/DATA/SPLIT",
        help="shell patterns, later parts optional; repeatable",
    )
    run.add_argument("--force", action="store_true", help="run again what is there, and replace it")
    commands.add_parser("render", parents=[common], help="write results/TASK.md and pictures from results/TASK.csv")
    case = commands.add_parser("case", parents=[common, data], help="run one case (used by run)")
    case.add_argument("key", help="JSON [data, split, seed, method]")
    case.add_argument("--out", type=Path, required=True)
    return parser


def _render(task_name: str, path: Path) -> int:
    from benchmarks.render import render
    from benchmarks.results import ResultFile

    if not path.exists():
        print(f"{path} does not exist: run the task first", file=sys.stderr)
        return 1
    for written in render(get_task(task_name), ResultFile(path)):
        print(written)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (1 if a case failed or none could run)."""
    args = _parser().parse_args(arguments)
    if find_spec("cellxpert") is None:
        print("cellxpert is not installed in this environment: pip install -e .", file=sys.stderr)
        return 2
    path = args.results / f"{args.task}{'.quick' if args.quick else ''}.csv"
    if args.command == "render":
        return _render(args.task, path)
    from benchmarks.results import ResultFile
    from benchmarks.runner import run_case, run_task, write_measurements

    if args.data is not None and not args.data.is_dir():
        print(f"--data {args.data} is not a folder", file=sys.stderr)
        return 2
    options = Options(data_dir=args.data, quick=args.quick)
    if args.command == "case":
        data, split, seed, method = json.loads(args.key)
        write_measurements(run_case(args.task, (data, split, seed, method), options), args.out)
        return 0
    outcome = run_task(get_task(args.task), options, ResultFile(path), only=args.only, force=args.force)
    print(
        f"{outcome.done} run, {outcome.present} there already, {outcome.missing} left out, {outcome.failed} failed; {path}"
    )
    if path.exists():
        _render(args.task, path)
    nothing = not (outcome.done or outcome.present)
    return 1 if outcome.failed or nothing else 0
