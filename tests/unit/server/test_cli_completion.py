"""Check the completion scripts in the shells themselves, and what a misspelled word is answered with."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from server.cli.completion import SHELLS, script_for, verbs_of
from server.cli.main import build_parser, main


def completed(folder: Path, *words: str) -> set[str]:
    """Return what bash offers for the last of ``words`` behind ``strata``."""
    script = folder / "strata.bash"
    script.write_text(script_for("bash", verbs_of(build_parser())))
    line = " ".join(f"'{word}'" for word in ("strata", *words))
    program = f"""
        source {script}
        COMP_WORDS=({line}); COMP_CWORD={len(words)}
        _strata
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_every_verb_and_the_verbs_own_flags(tmp_path: Path):
    verbs = {verb.name for verb in verbs_of(build_parser())}
    assert completed(tmp_path, "") == verbs | {"--help", "--version"}
    assert completed(tmp_path, "ex") == {"explain", "export"}
    assert completed(tmp_path, "matrix", "--c") == {"--csv"}
    assert completed(tmp_path, "up", "--max-ba") == {"--max-batch"}
    for verb in verbs:
        assert "--json" in completed(tmp_path, verb, "--")


def test_bash_completes_files_where_files_belong(tmp_path: Path):
    (tmp_path / "birds.zip").touch()
    assert completed(tmp_path, "submit", "bir") == {"birds.zip"}
    assert completed(tmp_path, "chat", "--image", "bir") == {"birds.zip"}
    assert completed(tmp_path, "chat", "--model", "bir") == set()
    assert completed(tmp_path, "versions", "bir") == set()
    assert completed(tmp_path, "completion", "") >= set(SHELLS)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_reads_its_script(tmp_path: Path, shell: str, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert main(["completion", "--json", shell]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script}
    for verb in verbs_of(build_parser()):
        assert verb.name in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; its script was written but not read")
    file = tmp_path / "script"
    file.write_text(script)
    done = subprocess.run([shell, "-n", file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chta"], "there is no verb 'chta' (did you mean chat?); there are: up"),
        (["sumbit", "birds.zip"], "did you mean submit?"),
        (["zzz"], "there is no verb 'zzz'; there are: up, serve"),
        (["versions", "--jsn"], "--jsn is not a flag here; did you mean --json?"),
        (["chat", "--imgae=cat.png", "hi"], "did you mean --image?"),
        (["--json", "versions"], "--json belongs behind the verb: strata versions --json"),
        (["completion", "bsh"], "there is no shell 'bsh' (did you mean bash?)"),
    ],
)
def test_a_misspelled_word_is_answered_with_the_nearest(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
