"""The command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cellxpert import __version__, demo
from cellxpert.cli import main


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "demo" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(demo, "run_demo", lambda *args, **kwargs: calls.append((args, kwargs)))
    arguments = ["demo", "--out", str(tmp_path), "--preset", "mini", "--seeds", "2", "--epochs", "5", "--no-progress"]
    assert main(arguments) == 0
    assert calls == [
        ((tmp_path,), {"preset": "mini", "n_seeds": 2, "max_epochs": 5, "progress_bar": False}),
    ]


@pytest.mark.parametrize("arguments", [["demo", "--seeds", "0"], ["demo", "--preset", "huge"], ["fly"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "error" in capsys.readouterr().err


def test_help_loads_no_torch() -> None:
    code = "import sys; from cellxpert.cli import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
