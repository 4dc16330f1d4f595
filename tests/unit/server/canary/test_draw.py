"""Who is drawn: the same askers always, as many as the weight says, others with every version."""

from __future__ import annotations

import math
from typing import Any

import pytest

from adapter_store.versions import AliasRecord
from server.canary.draw import asker_key, is_drawn
from server.chat.asker import asker_of
from server.chat.protocol import ChatRequest

ASKERS = [asker_key("user", f"person-{number}") for number in range(20_000)]


def record(weight: float | None, *, revision: int = 1, since: int | None = 1) -> AliasRecord:
    return AliasRecord(
        alias="canary",
        version="v2",
        revision=revision,
        moved_at=0.0,
        reason="test",
        actor="test",
        weight=weight,
        since=since,
    )


def drawn_by(named: AliasRecord) -> set[bytes]:
    return {asker for asker in ASKERS if is_drawn(named, asker)}


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5])
def test_the_share_is_the_weight_within_four_deviations_of_chance(weight: float):
    deviation = math.sqrt(len(ASKERS) * weight * (1 - weight))
    assert abs(len(drawn_by(record(weight))) - weight * len(ASKERS)) < 4 * deviation


def test_the_ends_of_the_range_are_none_and_all():
    assert drawn_by(record(0.0)) == drawn_by(record(None)) == set()
    assert drawn_by(record(1.0)) == set(ASKERS)


def test_another_weight_of_the_same_version_moves_nobody_back():
    before = drawn_by(record(0.1, revision=4, since=4))
    after = drawn_by(record(0.3, revision=5, since=4))
    assert before < after


def test_another_version_meets_others():
    first = drawn_by(record(0.1, revision=4, since=4))
    other = drawn_by(record(0.1, revision=6, since=6))
    both = len(first) * 0.1
    assert abs(len(first & other) - both) < 5 * math.sqrt(both)


def test_a_record_without_the_revision_of_its_version_draws_by_its_own():
    assert drawn_by(record(0.1, revision=4, since=None)) == drawn_by(record(0.1, revision=4, since=4))


def chat(*turns: tuple[str, Any], **more: Any) -> ChatRequest:
    messages = [{"role": role, "content": content} for role, content in turns]
    return ChatRequest.model_validate({"model": "strata", "messages": messages, **more})


OPENING = (("system", "Be brief."), ("user", "Which digit is it?"))


def test_a_conversation_stays_the_same_asker_from_turn_to_turn():
    first = asker_of(chat(*OPENING), b"key")
    assert asker_of(chat(*OPENING, ("assistant", "seven"), ("user", "Sure?")), b"key") == first
    assert asker_of(chat(*OPENING), b"other key") != first
    assert asker_of(chat(("user", "Which digit is it?")), b"key") != first


def test_pictures_belong_to_the_opening():
    def about(url: str) -> bytes:
        parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
        return asker_of(chat(("user", parts)), b"key")

    assert about("data:image/png;base64,AA") == about("data:image/png;base64,AA")
    assert about("data:image/png;base64,AA") != about("data:image/png;base64,BB")


def test_a_named_asker_is_the_same_in_every_conversation():
    anna = asker_of(chat(*OPENING, user="anna", safety_identifier="x"), b"key")
    assert asker_of(chat(("user", "Hello"), user="anna", prompt_cache_key="y"), b"other key") == anna
    assert asker_of(chat(*OPENING, safety_identifier="anna"), b"key") != anna
    cached = asker_of(chat(*OPENING, prompt_cache_key="c"), b"key")
    assert asker_of(chat(("user", "Hello"), prompt_cache_key="c"), b"key") == cached


@pytest.mark.parametrize("user", ["", 7, None, ["anna"], {"a": 1}])
def test_a_name_that_is_no_text_is_passed_over(user: Any):
    assert asker_of(chat(*OPENING, user=user), b"key") == asker_of(chat(*OPENING), b"key")


def test_text_that_no_encoding_knows_is_a_key_all_the_same():
    assert asker_of(chat(*OPENING, user="\ud800"), b"key") == asker_of(chat(*OPENING, user="\ud800"), b"")


def test_pieces_do_not_run_into_each_other():
    assert asker_key("ab", "c") != asker_key("a", "bc")


def test_long_pieces_differ_by_length_beginning_and_end():
    picture = b"x" * 100_000
    others = [picture + b"x", b"y" + picture[1:], picture[:-1] + b"y"]
    assert len({asker_key(piece) for piece in (picture, *others)}) == 4
    assert asker_key(picture.decode()) == asker_key(picture)
