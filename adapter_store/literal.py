"""Encode template text and user text into one token sequence, so that user text yields no control token."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapter_store.errors import BaseModelError, InputError


@dataclass(frozen=True, slots=True)
class Part:
    """Hold a piece of text; ``literal`` text comes from a person, the rest from the chat template."""

    text: str
    literal: bool


class LiteralTokenizer:
    """Tokenize mixed text with two private copies of the base's tokenizer; holds no mutable state.

    Attributes:
        head: tokens that the tokenizer puts before every text (such as BOS).
        control_ids: tokens that only the template may create.

    Raises:
        BaseModelError: the tokenizer has no fast form.
    """

    def __init__(self, tokenizer: Any, image_token_id: int) -> None:
        from tokenizers import Tokenizer

        if not getattr(tokenizer, "is_fast", False):
            raise BaseModelError(
                "the base has no tokenizer.json: convert its tokenizer to the fast format first"
            )
        serialized = tokenizer.backend_tokenizer.to_str()
        self._plain: Any = Tokenizer.from_str(serialized)
        self._literal: Any = Tokenizer.from_str(serialized)
        for core in (self._plain, self._literal):
            core.no_truncation()
            core.no_padding()
        # A fixed copy: switching this flag on a shared tokenizer would race with other threads.
        self._literal.encode_special_tokens = True
        added = self._plain.get_added_tokens_decoder()
        self.control_ids = frozenset(index for index, token in added.items() if token.special) | {
            image_token_id
        }
        names = sorted((self.text_of(index) for index in self.control_ids), key=len, reverse=True)
        self._controls = re.compile("|".join(re.escape(name) for name in names))
        self.head = tuple(_head(tokenizer))
        self._spaces_first = self._plain.encode("x", add_special_tokens=False).tokens[0].startswith("▁")
        self._controls_in = functools.lru_cache(maxsize=2048)(self._find_controls)

    def text_of(self, token_id: int) -> str:
        """Return a token as it is written."""
        return str(self._plain.id_to_token(token_id))

    def without_double_space(self, text: str) -> str:
        """Drop a leading space where the tokenizer adds one itself."""
        return text[1:] if self._spaces_first and text.startswith(" ") else text

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """Return the tokens of the joined parts.

        The joined text is encoded at once, as the base's own tokenizer would. Only if that yields a control
        token more than the template wrote is it encoded stretch by stretch, with literal text spelled out.

        Raises:
            InputError: the text holds a reserved token that this tokenizer cannot spell out.
        """
        text = "".join(part.text for part in parts)
        if not text:
            return []
        wanted = [control for part in parts if not part.literal for control in self._controls_in(part.text)]
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self._controls_of(ids) != wanted:
            ids = self._spell(parts)
            if self._controls_of(ids) != wanted:
                raise InputError(
                    "a text contains a reserved token of this model: remove it", param="messages"
                )
        return ids

    def _controls_of(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self.control_ids]

    def _find_controls(self, text: str) -> tuple[int, ...]:
        return tuple(self._controls_of(self._plain.encode(text, add_special_tokens=False).ids))

    def _spell(self, parts: Sequence[Part]) -> list[int]:
        """Encode stretches between the template's control tokens, each wholly literally."""
        ids: list[int] = []
        stretch = ""
        for part in parts:
            if part.literal:
                stretch += part.text
                continue
            end = 0
            for match in self._controls.finditer(part.text):
                ids += self._literally(stretch + part.text[end : match.start()])
                ids.append(int(self._plain.token_to_id(match.group())))
                stretch, end = "", match.end()
            stretch += part.text[end:]
        return ids + self._literally(stretch)

    def _literally(self, text: str) -> list[int]:
        return list(self._literal.encode(text, add_special_tokens=False).ids) if text else []


def _head(tokenizer: Any) -> list[int]:
    """Return what the tokenizer puts before a text."""
    plain = tokenizer("x", add_special_tokens=False).input_ids
    full = tokenizer("x").input_ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return list(full[:start])
    return []
