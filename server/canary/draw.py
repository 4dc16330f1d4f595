"""Draw the requests that a canary or shadow gets: an asker stays drawn, and each version draws anew.

The draw hashes who asks together with the revision by which the version came to be named. So an asker is
answered by the same version from turn to turn, a higher weight adds askers and moves none, and the next
canary meets other people. Nothing about askers is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from adapter_store.versions import AliasRecord

_END = 8192
Asker = Callable[[], bytes]
"""Gives the key of who asks; called only while there is something to draw for."""


def is_drawn(record: AliasRecord, asker: bytes) -> bool:
    """Tell whether the requests of ``asker`` belong to the share that ``record`` takes."""
    seed = f"{record.alias}:{record.since or record.revision}:".encode()
    drawn = int.from_bytes(blake2b(seed + asker, digest_size=8).digest())
    return drawn < (record.weight or 0.0) * 2**64


def asker_key(*pieces: str | bytes) -> bytes:
    """Return a key of 16 bytes for what identifies an asker; other pieces give another key.

    Of a long piece, a picture, its length, beginning and end are taken: this runs where every request waits,
    and two askers that are drawn alike do no harm.
    """
    digest = blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8))
        for part in (piece,) if len(piece) <= 2 * _END else (piece[:_END], piece[-_END:]):
            digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return digest.digest()
