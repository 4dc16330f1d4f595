"""Parse the command line so that a misspelled word is answered with the one that was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any, NoReturn

_CHOICE = re.compile(r"argument (?P<name>[^:]+): invalid choice: '(?P<given>[^']*)'")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors name the nearest word that exists."""

    def error(self, message: str) -> NoReturn:
        """End with status 2, the usage, and what was probably meant."""
        wrong = _CHOICE.match(message)
        if wrong:
            given, known = wrong["given"], self._choices(wrong["name"])
            advice = f" (did you mean {meant}?)" if (meant := nearest(given, known)) else ""
            what = "verb" if wrong["name"] == "VERB" else wrong["name"]
            message = f"there is no {what} {given!r}{advice}; there are: {', '.join(known)}"
        super().error(message)

    def unknown(self, words: Iterable[str]) -> NoReturn:
        """End because of words that this parser does not know; its own flags among them came too early."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        faults = []
        for word in words:
            name = word.partition("=")[0]
            if name in flags:
                faults.append(f"{name} belongs behind the verb: {self.prog} {name}")
            elif meant := nearest(name, flags) if name.startswith("-") else "":
                faults.append(f"{name} is not a flag here; did you mean {meant}?")
            else:
                faults.append(f"unrecognized arguments: {word}")
        self.error("; ".join(faults))

    def _choices(self, name: str) -> list[str]:
        for action in self._actions:
            if action.choices and name in (action.metavar, action.dest, "/".join(action.option_strings)):
                return [str(choice) for choice in action.choices]
        return []


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is spelled most like ``word``; empty if none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)), "")


def verb_parser(parser: argparse.ArgumentParser, verb: str) -> Parser:
    """Return the parser of one verb."""
    group: Any = next(action for action in parser._actions if action.dest == "verb")
    found = group.choices[verb]
    assert isinstance(found, Parser)
    return found
