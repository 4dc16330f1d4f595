"""Count what a data set holds, and say what about the whole of it is worth knowing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from adapter_store.datasets.luck import (
    commonest_share,
    held_back_by_luck,
    least_held_out,
)
from adapter_store.datasets.records import (
    Context,
    CountTokens,
    Division,
    Example,
    FaultList,
    Lengths,
    Overlap,
    picture_key,
    shown,
)
from adapter_store.texts import counted

HISTOGRAM = 20
_MAX_ANSWERS_COUNTED = 50_000
_GOOD = 0.9
"""Accuracy of the model that should hardly ever be held back for want of pictures."""
_HARDLY_EVER = 0.1
_MANY_QUESTIONS = 500
_NOTHING_HELD_OUT = (
    "no picture is held out of a new task with this data: the gate holds back what it cannot measure; "
    "give more pictures or a test part"
)
_TEXTS_MEASURED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Answers:
    """How many different answers there are, the commonest ones, and how often each is given.

    ``truncated``: there are more, and those were not counted.
    """

    distinct: int
    truncated: bool
    histogram: tuple[tuple[str, int], ...]


def count_answers(examples: Sequence[Example], warnings: FaultList) -> Answers:
    """Count the answers of all turns; warn if there is only one."""
    answers: Counter[str] = Counter()
    truncated = False
    for example in examples:
        for turn in example.turns:
            if len(answers) < _MAX_ANSWERS_COUNTED or turn.answer in answers:
                answers[turn.answer] += 1
            else:
                truncated = True
    if len(answers) == 1 and len(examples) > 1:
        reason = f'all answers are "{shown(next(iter(answers)))}"; nothing can be told apart by them'
        warnings.add(None, "answer", reason)
    common = sorted(answers.items(), key=lambda pair: (-pair[1], pair[0]))[:HISTOGRAM]
    return Answers(len(answers), truncated, tuple((shown(text, 120), count) for text, count in common))


def count_repeats(examples: Sequence[Example], stored: Mapping[str, str], warnings: FaultList) -> int:
    """Return how many examples repeat an earlier one; warn of them and of contradictions."""
    seen: set[int] = set()
    answers: dict[int, int] = {}
    repeats = conflicts = 0
    for example in examples:
        picture = stored.get(example.image or "", example.image)
        whole = hash((picture, example.turns))
        asked = hash((picture, tuple(turn.question for turn in example.turns)))
        repeats += whole in seen
        conflicts += answers.setdefault(asked, whole) != whole
        seen.add(whole)
    if conflicts:
        asks, says = ("asks", "answers") if conflicts == 1 else ("ask", "answer")
        same = f"{counted(conflicts, 'example')} {asks} the same of the same picture"
        reason = f"{same} but {says} otherwise"
        warnings.add(None, "answer", reason)
    if repeats:
        verb = "repeats" if repeats == 1 else "repeat"
        warnings.add(None, "", f"{counted(repeats, 'example')} {verb} an earlier one word for word")
    return repeats


def divide(examples: Sequence[Example], keys: Sequence[str], warnings: FaultList) -> Division:
    """Count the parts that the data itself names; a picture with a test example is in the test part."""
    tested = {key for example, key in zip(examples, keys, strict=True) if example.split == "test"}
    trained = {key for example, key in zip(examples, keys, strict=True) if example.split != "test"}
    if both := len(tested & trained):
        noun = "picture is" if both == 1 else "pictures are"
        reason = f"{both} {noun} in the train part and in the test part: held out, never learned from"
        warnings.add(None, "split", reason)
    in_test = sum(key in tested for key in keys)
    with_picture = {key for example, key in zip(examples, keys, strict=True) if example.image is not None}
    return Division(
        given=bool(tested),
        train_examples=len(keys) - in_test,
        train_images=len(with_picture - tested),
        test_examples=in_test,
        test_images=len(with_picture & tested),
    )


def warn_of_luck(
    examples: Sequence[Example], keys: Sequence[str], context: Context, warnings: FaultList
) -> None:
    """Warn if the gate could hold a good model of a new task back because few pictures are held out."""
    commonest = commonest_share(examples)
    measuring = context.measuring
    is_known = context.task is not None and context.task in context.held_out
    if not examples or commonest >= 1 or measuring.max_chance >= 1 or is_known:
        return
    pictures = len(set(keys))
    answers_each = sum(len(example.turns) for example in examples) / pictures
    held = len({key for example, key in zip(examples, keys, strict=True) if example.split == "test"})
    how = "only" if held else "only about"
    if not held and pictures > 1 and measuring.holdout_ratio:
        least = least_held_out(pictures, answers_each, commonest, measuring.max_chance)
        held = min(max(round(measuring.holdout_ratio * pictures), least), pictures - 1)
    if not held:
        warnings.add(None, "split", _NOTHING_HELD_OUT)
        return
    asked = round(held * answers_each)
    if asked > _MANY_QUESTIONS:
        return
    luck = held_back_by_luck(asked, commonest, _GOOD, measuring.max_chance)
    if luck <= _HARDLY_EVER:
        return
    noun = "picture is" if held == 1 else "pictures are"
    reason = (
        f"{how} {held} {noun} held out of a new task with this data: the gate can hold it back by luck "
        f"(about {luck:.0%} if 9 of 10 answers are right); give more pictures or a larger test part"
    )
    warnings.add(None, "split", reason)


def find_overlap(keys: Sequence[str], context: Context, warnings: FaultList) -> tuple[Overlap, ...]:
    """Return which other tasks are measured on pictures of this data set; warn of each."""
    own = set(keys)
    found = [
        Overlap(task, count)
        for task, held in sorted(context.held_out.items())
        if task != context.task and (count := len(own & held))
    ]
    for overlap in found:
        noun = "picture is" if overlap.images == 1 else "pictures are"
        reason = (
            f'{overlap.images} {noun} held out to measure the task "{shown(overlap.task)}"; '
            "what is learned from them here makes that measure look too good"
        )
        warnings.add(None, "image", reason)
    return tuple(found)


def measure_lengths(examples: Sequence[Example], context: Context) -> tuple[Lengths, Lengths]:
    """Return how long questions and answers are, in tokens if they can be counted, else in characters."""
    questions = (turn.question for example in examples for turn in example.turns)
    answers = (turn.answer for example in examples for turn in example.turns)
    return _lengths(questions, context.count_tokens), _lengths(answers, context.count_tokens)


def _lengths(texts: Iterator[str], count_tokens: CountTokens | None) -> Lengths:
    counts: Counter[int] = Counter()
    # Some at a time: a tokenizer keeps much more of a text than its length until all are counted.
    while some := Counter(islice(texts, _TEXTS_MEASURED_AT_ONCE)):
        different = list(some)
        sizes = count_tokens(different) if count_tokens else map(len, different)
        for size, text in zip(sizes, different, strict=True):
            counts[size] += some[text]
    if not counts:
        return Lengths()
    weighted = sorted(counts.items())
    ends = list(accumulate(count for _, count in weighted))

    def at(ratio: float) -> int:
        wanted = ratio * ends[-1]
        return next(size for (size, _), end in zip(weighted, ends, strict=True) if end >= wanted)

    return Lengths(at(0.5), at(0.95), weighted[-1][0])


def keys_of(examples: Sequence[Example], stored: Mapping[str, str]) -> list[str]:
    """Return the key of every example; of a faulty picture, its name in the upload."""
    return [
        picture_key(example)
        if example.image is None
        else stored[example.image].rpartition(".")[0]
        if example.image in stored
        else example.image
        for example in examples
    ]
