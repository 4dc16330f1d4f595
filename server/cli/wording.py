"""Put the server's words, which speak of HTTP, into those of the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

Words = Callable[[str, str | None], str]
"""Given the server's sentence and the field that it blames, returns the sentence for who typed a command."""

_ARGUMENTS = {"correction": "right", "adapter": "folder", "hyperparameters": "set", "model": "name"}
"""Fields whose arguments are called otherwise, where the verb has none of the field's own name."""
_SETTINGS = "hyperparameters"
_ALWAYS_NAMED = ("image", "name", _SETTINGS)
"""Fields that are named even where the sentence does not: its subject is no word of the command line."""
_NEVER_NAMED = ("help", "json", "debug", "url", "api_key")
"""Arguments of every verb that are no field of a request: what the server says with them are plain words."""
_QUESTION = "--question"
_PHRASES: tuple[tuple[str, str], ...] = (
    (r"hyperparameters cannot be used", "--set cannot be used"),
    (r"PUT version and weight to \S+ first", "name one with: strata canary set VERSION --weight SHARE"),
    (r"there is no [A-Z]+ '.*'; the list of endpoints is at /docs",
     "the server knows no such address; look at --name and --url: is it a Strata of this version?"),
    (r"GET /v1/(models|adapters/<name>/(versions|aliases))\b", "strata versions"),
    (r"POST /v1/feedback takes them", "strata correct takes them"),
    (r"/v1/routing:explain\b", "strata explain"),
    (r"list the versions to see (all|which there are)", "strata versions lists them"),
    (r"name a version of the list", "strata versions lists those that have"),
    (r"list the jobs to see which there are", "strata jobs lists them"),
    (r"(it reads job- and then .*)", r"\1; strata jobs lists them"),
    (r": send the header 'Authorization: [^']*'", ""),
    (r"send a zip that holds it, or a data: URL", "name a folder or a zip that holds both"),
    (r"; send less, or data sets as a file", "; send a shorter text or a smaller picture"),
    (r"shorten the messages or send", "shorten the question or send"),
    (r", or leave it out to give a thumb only", ""),
    (r"(Input|String) should ", "it should "),
    (r", unable to parse .*? as a \w+(?= \(|;|$)", ""),
)  # fmt: skip
_OF_QUESTIONS: tuple[tuple[str, str, str], ...] = (
    (
        'give one for all of them (a form field "question", or --question), or send a data file',
        f"give one for all of them ({_QUESTION} TEXT), or send a data file",
        "send a data file",
    ),
    (
        ", or give one for all of them with the file",
        f", or give one for all of them with {_QUESTION}",
        "",
    ),
)
"""What is said of a question for all records, by whether the verb takes one."""


def words_of(parser: argparse.ArgumentParser) -> Words:
    """Return what puts the server's sentences into the words of one verb."""
    typed = {action.dest: _typed(action) for action in parser._actions if action.dest not in _NEVER_NAMED}
    typed |= {
        field: typed[dest] for field, dest in _ARGUMENTS.items() if dest in typed and field not in typed
    }

    def said(message: str, field: str | None = None) -> str:
        for text, taken, other in _OF_QUESTIONS:
            message = message.replace(text, taken if typed.get("question") == _QUESTION else other)
        for pattern, words in _PHRASES:
            message = re.sub(pattern, words, message)
        # The names in a fault of hyperparameters are those of settings, not of fields.
        for name, argument in typed.items() if field != _SETTINGS else ():
            message = re.sub(rf"(^|; |: ){name}(?=: | is | must )", rf"\g<1>{argument}", message)
            message = message.replace(f"send it as the field '{name}'", f"give it as {argument}")
        argument = typed.get(field or "", "")
        is_named = field not in _ALWAYS_NAMED or argument in message
        return message if is_named else f"{argument}: {message}"

    return said


def _typed(action: argparse.Action) -> str:
    """Return how an argument is written on the command line."""
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)


def as_it_is(message: str, _field: str | None = None) -> str:
    """Return the server's sentence unchanged, for programs that speak HTTP themselves."""
    return message
