"""Turn tokens into text as they come: no half characters, no part of a stop string."""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import Any

from tokenizers import decoders


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """Invert the byte-level alphabet, which writes every byte as a printable character."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


class TokenTexts:
    """Know the bytes behind every token of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.byte_level = isinstance(self.backend.decoder, decoders.ByteLevel)
        self.special = frozenset(int(token) for token in tokenizer.all_special_ids) | frozenset(
            index for index, added in self.backend.get_added_tokens_decoder().items() if added.special
        )
        self._added = {i: added.content for i, added in self.backend.get_added_tokens_decoder().items()}
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """Give the UTF-8 bytes a token stands for; a special token's own name."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def text_of(self, token_id: int) -> str:
        """Give a token's bytes as text; incomplete characters appear as U+FFFD."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self.backend.id_to_token(token_id)
        if piece is None:
            return b""
        if self.byte_level:
            table = _byte_of_character()
            return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("▁", " ").encode()


class TextStream:
    """Decode one answer token by token; ``stopped`` turns true when a stop string appeared."""

    __slots__ = ("_decoder", "_held", "_stop", "_texts", "_wide", "stopped")

    def __init__(self, texts: TokenTexts, stop: tuple[str, ...] = ()) -> None:
        self._texts = texts
        self._stop = stop
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._wide = None if texts.byte_level else decoders.DecodeStream(skip_special_tokens=True)
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now certain."""
        text = self._decode(token_id)
        if not self._stop:
            return text
        self._held += text
        found = [place for place in map(self._held.find, self._stop) if place >= 0]
        if found:
            certain, self._held, self.stopped = self._held[: min(found)], "", True
            return certain
        keep = self._possible_stop()
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def finish(self) -> str:
        """Return text held back for a stop string that did not come; an incomplete character is dropped."""
        held, self._held = self._held, ""
        return held

    def _decode(self, token_id: int) -> str:
        if token_id in self._texts.special:
            return ""
        if self._wide is None:
            return self._decoder.decode(self._texts.bytes_of(token_id))
        try:
            return self._wide.step(self._texts.backend, token_id) or ""
        except Exception:  # noqa: BLE001  all that the library raises: bytes that are no character stood before
            self._wide = decoders.DecodeStream(skip_special_tokens=True)
            return self._wide.step(self._texts.backend, token_id) or ""

    def _possible_stop(self) -> int:
        """Give the length of the longest tail that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
