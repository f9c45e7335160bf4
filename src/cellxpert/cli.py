"""The command line: ``cellxpert demo``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cellxpert", description="One transformer over single-cell multi-omics.")
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="command")
    demo = commands.add_parser(
        "demo",
        help="train on real PBMC counts, annotate held-out cells, draw and report",
        description="Takes the 700 cells of PBMC68K that scanpy carries, holds out 20 %%, trains, annotates the held-out "
        "cells, writes an .h5mu and pictures, and compares with logistic regression on the same split.",
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: %(default)s)")
    demo.add_argument("--preset", default="nano", choices=["nano", "mini"], help="size (default: %(default)s)")
    demo.add_argument("--seeds", type=int, default=3, help="runs, each from another seed (default: %(default)s)")
    demo.add_argument("--epochs", type=int, default=None, help="passes over the training cells (default: the preset's)")
    demo.add_argument("--no-progress", action="store_true", help="draw no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        Arguments; those of the process by default.

    Returns
    -------
    0, or 2 if no command was named.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        from cellxpert import __version__

        print(__version__)
        return 0
    if arguments.command != "demo":
        parser.print_help()
        return 2
    if arguments.seeds < 1:
        parser.error("--seeds must be at least 1")
    from cellxpert.demo import run_demo

    run_demo(
        arguments.out,
        preset=arguments.preset,
        n_seeds=arguments.seeds,
        max_epochs=arguments.epochs,
        progress_bar=not arguments.no_progress,
    )
    return 0
