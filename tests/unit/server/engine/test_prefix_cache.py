"""Only what is really the same may share keys and values."""

from __future__ import annotations

import torch

from server.engine.prefix_cache import PrefixCache, cut_prompt

END = frozenset({2})
HEAD = [1, *range(10, 20), 2]
PICTURE = [9] * 8
QUESTION = [*range(30, 70), 2, 1, 5]
PROMPT = [*HEAD, *PICTURE, *QUESTION]
GATE = len(HEAD) + len(PICTURE)


def keys(ids=PROMPT, image="a", boundary=(GATE, GATE), salt=b"v1") -> list[bytes]:
    place = ids.index(9) if 9 in ids else 0
    return [segment.key for segment in cut_prompt(ids, [(place, image)], boundary, END, salt)]


def test_segments_cover_the_prompt_up_to_the_last_turn_end() -> None:
    segments = cut_prompt(PROMPT, [(len(HEAD), "a")], (GATE, GATE), END, b"")
    assert [(s.start, s.stop) for s in segments] == [(0, 12), (12, 20), (20, 61)]


def test_the_last_token_is_never_cached() -> None:
    ids = [*HEAD, *PICTURE]
    assert all(s.stop < len(ids) for s in cut_prompt(ids, [(12, "a")], (20, 20), END, b""))


def test_version_and_coefficients_matter_only_where_they_act() -> None:
    a, b = keys(salt=b"v1"), keys(salt=b"v2")
    assert a[:2] == b[:2]
    assert a[2] != b[2]
    base = keys(boundary=(GATE, len(PROMPT)), salt=b"")
    assert base[:2] == a[:2]
    assert base[2] != a[2]


def test_another_picture_shares_the_head_only() -> None:
    a, b = keys(image="a"), keys(image="b")
    assert a[0] == b[0]
    assert not set(a[1:]) & set(b[1:])


def test_without_a_picture_everything_is_salted() -> None:
    text = [*HEAD, *QUESTION]
    a = [s.key for s in cut_prompt(text, [], (0, 0), END, b"x")]
    b = [s.key for s in cut_prompt(text, [], (0, 0), END, b"y")]
    assert len(a) == 1  # the short head alone is not worth keeping
    assert not set(a) & set(b)


def test_a_changed_token_changes_every_later_key() -> None:
    other = [*PROMPT]
    other[3] = 77
    assert not set(keys()) & set(keys(other))


def test_least_recently_used_goes_first() -> None:
    cache = PrefixCache(max_bytes=3 * 400)
    for name in (b"a", b"b", b"c"):
        cache.put(name, torch.zeros(100))
    assert cache.get(b"a") is not None
    cache.put(b"d", torch.zeros(100))
    assert b"b" not in cache
    assert b"a" in cache
    assert cache.nbytes == 1200
    cache.put(b"huge", torch.zeros(1000))
    assert b"huge" not in cache
    assert len(cache) == 3
    cache.clear()
    assert cache.nbytes == len(cache) == 0
