"""Who asks, as far as a request tells: what keeps a person or a conversation on one version."""

from __future__ import annotations

from collections.abc import Iterator

from server.canary.draw import asker_key
from server.chat.protocol import ChatRequest, ImagePart

_NAMES = ("user", "safety_identifier", "prompt_cache_key")


def asker_of(chat: ChatRequest, caller: bytes) -> bytes:
    """Return the key of whoever asks.

    It is the first field of ``user``, ``safety_identifier`` and ``prompt_cache_key`` that has text; without
    them ``caller``, the digest of the API key, with how the conversation began: all up to its first user
    message, which later turns repeat.
    """
    given = chat.model_extra or {}
    for name in _NAMES:
        value = given.get(name)
        if isinstance(value, str) and value:
            return asker_key(name, value)
    return asker_key("conversation", caller, *_opening(chat))


def _opening(chat: ChatRequest) -> Iterator[str]:
    for message in chat.messages:
        yield message.role
        if isinstance(message.content, list):
            for part in message.content:
                yield part.image_url.url if isinstance(part, ImagePart) else part.text
        else:
            yield message.content or ""
        if message.role == "user":
            return
