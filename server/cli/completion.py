"""``strata completion``: write what bash, zsh or fish complete, read from the parser itself.

The scripts are whole: a shell that has loaded one never starts Python to complete a word.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_store.settings import GATEWAY_NAMES, SHARED_NAMES, WORKER_NAMES
from server.cli.arguments import add_verb
from server.cli.output import print_json

SHELLS = ("bash", "zsh", "fish")
_SETTINGS = {
    "up": (*SHARED_NAMES, *GATEWAY_NAMES, *WORKER_NAMES),
    "serve": (*SHARED_NAMES, *GATEWAY_NAMES),
    "work": (*SHARED_NAMES, *WORKER_NAMES),
}
_FOLDERS = frozenset({"home", "base", "cache"})


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a verb: its spellings, whether a value follows, and whether that is a file."""

    names: tuple[str, ...]
    text: str
    takes_value: bool = False
    is_file: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: its flags, and what stands behind it without a flag."""

    name: str
    text: str
    flags: tuple[Flag, ...]
    takes_file: bool = False
    choices: tuple[str, ...] = ()

    def valued(self, *, files: bool) -> list[str]:
        """Return the spellings of the flags whose value is a file, or is anything else."""
        return [
            name for flag in self.flags if flag.takes_value and flag.is_file == files for name in flag.names
        ]


def add_verbs(verbs: Any) -> None:
    """Add ``completion``."""
    parser = add_verb(
        verbs, "completion", "write a script that completes this command in a shell", _completion
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell reads the script")
    parser.epilog = (
        'bash: eval "$(strata completion bash)" in ~/.bashrc; zsh: the same with zsh, behind compinit, in '
        "~/.zshrc; fish: strata completion fish > ~/.config/fish/completions/strata.fish"
    )


def _completion(args: argparse.Namespace) -> int:
    from server.cli.main import build_parser

    script = script_for(args.shell, verbs_of(build_parser()))
    if args.json:
        print_json({"shell": args.shell, "script": script})
    else:
        sys.stdout.write(script)
    return 0


def verbs_of(parser: argparse.ArgumentParser) -> list[Verb]:
    """Return what the parser knows, in its order."""
    group: Any = next(action for action in parser._actions if action.dest == "verb")
    texts = {action.dest: action.help or "" for action in group._choices_actions}
    return [_verb(name, texts.get(name, ""), parser) for name, parser in group.choices.items()]


def _verb(name: str, text: str, parser: argparse.ArgumentParser) -> Verb:
    flags = []
    takes_file, choices = False, ()
    for action in parser._actions:
        is_file = action.type is Path
        found = tuple(str(choice) for choice in action.choices or ())
        if action.option_strings:
            names, takes = tuple(action.option_strings), action.nargs != 0
            flags.append(
                Flag(names, (action.help or "").replace("%(default)s", "..."), takes, is_file, found)
            )
        else:
            takes_file, choices = takes_file or is_file, choices or found
    for setting in _SETTINGS.get(name, ()):
        spelled = f"--{setting.replace('_', '-')}"
        flags.append(Flag((spelled,), "a setting", takes_value=True, is_file=setting in _FOLDERS))
    return Verb(name, text, tuple(flags), takes_file, choices)


def script_for(shell: str, verbs: Sequence[Verb]) -> str:
    """Return the script that ``shell`` reads."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](verbs)


_BASH = """\
# bash completion of strata, written by: strata completion bash
_strata() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} verb='' word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        [[ $word == -* ]] || {{ verb=$word; break; }}
    done
    local words='' values='' files='' places=0
    case $verb in
        '') words='{verbs} --help --version' ;;
{cases}
    esac
    if [[ " $files " == *" $prev "* ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    elif [[ " $values " == *" $prev "* ]]; then
        COMPREPLY=()
    else
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        if (( places )) && [[ $cur != -* ]]; then
            mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen -f -- "$cur")
        fi
    fi
}}
complete -o filenames -F _strata strata
"""


def _bash(verbs: Sequence[Verb]) -> str:
    cases = []
    for verb in verbs:
        names = [name for flag in verb.flags for name in flag.names]
        parts = [f"words='{' '.join([*verb.choices, *names])}'"]
        parts += [
            f"values='{' '.join(verb.valued(files=False))}'",
            f"files='{' '.join(verb.valued(files=True))}'",
        ]
        parts += ["places=1"] if verb.takes_file else []
        cases.append(f"        {verb.name}) {' '.join(parts)} ;;")
    return _BASH.format(verbs=" ".join(verb.name for verb in verbs), cases="\n".join(cases))


_ZSH = """\
#compdef strata
# zsh completion of strata, written by: strata completion zsh
_strata() {{
    local -a verbs
    verbs=(
{verbs}
    )
    if (( CURRENT == 2 )); then
        _describe -t verbs 'verb' verbs
        return
    fi
    local verb=${{words[2]}}
    shift words
    (( CURRENT-- ))
    case $verb in
{cases}
    esac
}}
if [[ ${{funcstack[1]}} == _strata ]]; then
    _strata "$@"
else
    compdef _strata strata
fi
"""


def _zsh(verbs: Sequence[Verb]) -> str:
    described = [f"        {_quoted(f'{verb.name}:{verb.text}')}" for verb in verbs]
    cases = []
    for verb in verbs:
        specs = [_zsh_spec(flag, name) for flag in verb.flags for name in flag.names]
        if verb.choices:
            specs.append(f"1:choice:({' '.join(verb.choices)})")
        elif verb.takes_file:
            specs.append("*:file:_files")
        words = " \\\n                ".join(_quoted(spec) for spec in specs)
        cases.append(f"        {verb.name})\n            _arguments \\\n                {words} ;;")
    return _ZSH.format(verbs="\n".join(described), cases="\n".join(cases))


def _zsh_spec(flag: Flag, name: str) -> str:
    text = "".join("" if character in "[]:" else character for character in flag.text)
    if not flag.takes_value:
        return f"{name}[{text}]"
    values = f"({' '.join(flag.choices)})" if flag.choices else "_files" if flag.is_file else " "
    return f"*{name}[{text}]:value:{values}"


def _fish(verbs: Sequence[Verb]) -> str:
    lines = ["# fish completion of strata, written by: strata completion fish", "complete -c strata -f"]
    for verb in verbs:
        text = _quoted(verb.text)
        lines.append(f"complete -c strata -n __fish_use_subcommand -a {verb.name} -d {text}")
    for verb in verbs:
        seen = f"complete -c strata -n '__fish_seen_subcommand_from {verb.name}'"
        if verb.choices:
            lines.append(f"{seen} -a '{' '.join(verb.choices)}'")
        if verb.takes_file:
            lines.append(f"{seen} -F")
        lines += [f"{seen} {_fish_flag(flag)}" for flag in verb.flags]
    return "\n".join(lines) + "\n"


def _fish_flag(flag: Flag) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names]
    needs = ["-r", "-F"] if flag.is_file and flag.takes_value else ["-x"] if flag.takes_value else []
    wanted = [f"-a '{' '.join(flag.choices)}'"] if flag.choices else []
    return " ".join([*names, *needs, *wanted, f"-d {_quoted(flag.text)}"])


def _quoted(text: str) -> str:
    """Return the text in single quotes, as all three shells read it; apostrophes become typographic ones."""
    return "'" + text.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}").replace("\\", "") + "'"
