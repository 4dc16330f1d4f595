"""Check the pictures of an upload on all cores.

Decoders and hashes run outside of Python's lock, so threads are enough; what they
hold at once is bounded by their number, not by the number of pictures.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from adapter_store.datasets.sources import ImageSource, StoredImage
from adapter_store.errors import ImageError

MOST_THREADS = 8
_AT_ONCE = 32
_AHEAD = 4

Checked = tuple[str, StoredImage | ImageError]


def check_all(source: ImageSource, names: Sequence[str], threads: int | None = None) -> Iterator[Checked]:
    """Yield every name with its checked picture or with what is wrong with it, in the given order."""
    threads = threads or min(MOST_THREADS, os.cpu_count() or 1)
    groups = [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]
    if threads == 1 or len(groups) == 1:
        for group in groups:
            yield from _check(source, group)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
    try:
        waiting: deque[Future[list[Checked]]] = deque()
        for group in groups:
            waiting.append(pool.submit(_check, source, group))
            if len(waiting) > threads * _AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # whoever stops early waits for no picture that is not begun


def _check(source: ImageSource, names: Sequence[str]) -> list[Checked]:
    return [(name, _checked(source, name)) for name in names]


def _checked(source: ImageSource, name: str) -> StoredImage | ImageError:
    try:
        return source.check(name)
    except ImageError as error:
        return error
