"""All programs are called alike, and their exit status has one meaning."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.program import NotMeasured, program_parser, run_program, write_figures

PROGRAMS = (
    "beside.__main__ correcting decode engine forgetting.__main__ gateway.__main__ job_events many_tasks"
    " rated serving.__main__ swap.__main__ training validation"
).split()


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_the_module_that_is_run_and_the_statuses(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        import_module(f"benchmarks.{program}").main(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: python -m benchmarks.{program.removesuffix('.__main__')} [-h]")
    assert "exit status: 0 measured;" in shown


def test_the_list_above_is_all_programs() -> None:
    top = Path(__file__).resolve().parents[3] / "benchmarks"
    runs = [path for path in top.rglob("*.py") if 'if __name__ == "__main__"' in path.read_text("utf-8")]
    found = [".".join(path.relative_to(top).with_suffix("").parts) for path in runs]
    assert sorted(found) == sorted(PROGRAMS)


@pytest.mark.parametrize(("held", "status"), [(None, 0), (True, 0), (False, 1)])
def test_what_does_not_hold_is_status_1(held: bool | None, status: int) -> None:
    folders: list[Path] = []

    def measure(folder: Path) -> bool | None:
        assert folder.is_dir()
        folders.append(folder)
        return held

    assert run_program(measure) == status
    assert not folders[0].exists()


def test_a_folder_that_cannot_be_removed_takes_no_figures_away(tmp_path: Path) -> None:
    folders: list[Path] = []

    def measure(folder: Path) -> None:
        folders.append(folder)
        folder.rmdir()
        folder.symlink_to(tmp_path)  # no tree is removed through a link

    status = run_program(measure)
    folders[0].unlink()
    assert status == 0


def test_what_cannot_be_measured_is_said_in_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(_: Path) -> None:
        raise NotMeasured("the worker ended: [red] is no color here")

    assert run_program(measure) == 2
    assert capsys.readouterr().err == "error: the worker ended: [red] is no color here\n"


def test_a_fault_of_a_program_shows_its_place_and_is_not_taken_for_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure(_: Path) -> None:
        raise RuntimeError("a request failed")

    assert run_program(measure) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "RuntimeError: a request failed" in shown


def test_an_interrupted_program_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(_: Path) -> None:
        raise KeyboardInterrupt

    assert run_program(measure, interrupted="interrupted; runs are kept") == 130
    assert capsys.readouterr().err == "interrupted; runs are kept\n"


@pytest.mark.parametrize("place", ["missing/figures.json", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program_parser("benchmarks.any", "Measure.").parse_args(["--json", str(tmp_path / place)])
    assert ended.value.code == 2
    assert "name a file in a folder that there is" in capsys.readouterr().err


def test_figures_are_written_where_there_is_a_file_for_them(tmp_path: Path) -> None:
    write_figures(None, {"place": tmp_path})
    write_figures(tmp_path / "figures.json", {"place": tmp_path, "seconds": [0.5]})
    assert json.loads((tmp_path / "figures.json").read_text()) == {"place": str(tmp_path), "seconds": [0.5]}
