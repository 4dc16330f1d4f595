"""From messages to token ids: one renderer for training, evaluation and serving.

The base's chat template gives the structure, with marks where texts belong; the texts themselves are encoded
literally. So a user may write ``<|im_end|>`` and gets those characters, no control token; ``<image>`` is
refused outside of the places where a picture belongs.
An assistant's text is tokenized on its own, as it was generated: hence a training sequence begins with
exactly the tokens of the prompt that serving builds for the same question.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from adapter_store.errors import BaseModelError, InputError
from adapter_store.literal import LiteralTokenizer, Part
from adapter_store.state import Span
from adapter_store.texts import IMAGE_MARK, strip_image_marks

if TYPE_CHECKING:
    from adapter_store.base.load import Base

Role = Literal["system", "user", "assistant"]
_Shape = tuple[tuple[Role, int], ...]
# LLaVA 1.5's own format, for a base whose folder holds no template.
CLASSIC_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_MARK = "[[strata-text-{}]]"
_MARKS = re.compile(r"\[\[strata-text-(\d+)\]\]")


@dataclass(frozen=True, slots=True)
class Message:
    """Hold one turn of a conversation: its text and how many pictures come with it."""

    role: Role
    text: str
    images: int = 0


class QuestionAnswer(Protocol):
    """Stand for one training turn."""

    @property
    def question(self) -> str:
        """Return the question, with or without image marks."""
        ...

    @property
    def answer(self) -> str:
        """Return the answer to learn."""
        ...


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """Hold a prompt as tokens.

    Attributes:
        input_ids: every image placeholder is expanded to as many tokens as a picture has.
        image_spans: ``(start, end)`` of each picture's placeholders, in order.
        query_text: text of the first user turn without image marks (for eq. 1).
        first_turn_images: how many of the pictures belong to the first user turn.
    """

    input_ids: list[int]
    image_spans: tuple[tuple[int, int], ...]
    query_text: str
    first_turn_images: int

    def gate_start(self, span: Span) -> int:
        """Return the index of the first token on which increments act.

        With ``after_image`` that is the token after the last picture of the first user turn, so that all
        before it is the same for all versions; 0 without such a picture and with ``all``.
        """
        if span == "all" or not self.first_turn_images:
            return 0
        return self.image_spans[self.first_turn_images - 1][1]

    def split(self, span: Span) -> tuple[list[int], list[int]]:
        """Return ``(prefix_ids, suffix_ids)`` around ``gate_start``."""
        start = self.gate_start(span)
        return self.input_ids[:start], self.input_ids[start:]


@dataclass(frozen=True, slots=True)
class RenderedTraining:
    """Hold a training sequence; ``labels_mask`` is true on answer tokens and end-of-turn tokens only."""

    prompt: RenderedPrompt
    labels_mask: list[bool]

    @property
    def input_ids(self) -> list[int]:
        """Return all tokens of the sequence."""
        return self.prompt.input_ids

    def gate_start(self, span: Span) -> int:
        """Return the index of the first token on which increments act."""
        return self.prompt.gate_start(span)

    def split(self, span: Span) -> tuple[list[int], list[int]]:
        """Return ``(prefix_ids, suffix_ids)`` around ``gate_start``."""
        return self.prompt.split(span)


class Renderer:
    """Render conversations for one base; safe to call from several threads.

    Attributes:
        end_of_turn_id: the token that ends an answer.
        stop_ids: every token that ends a generation.
        image_tokens: how many placeholders a picture takes.

    Raises:
        BaseModelError: the base's tokenizer or template cannot be used.
    """

    def __init__(self, base: Base) -> None:
        self._tokenizer: Any = base.tokenizer
        self._image_token_id = int(base.image_token_id)
        self._literal = LiteralTokenizer(base.tokenizer, self._image_token_id)
        self._image_token = self._literal.text_of(self._image_token_id)
        self.image_tokens = _image_tokens(base)
        self._template, self._takes_parts = self._choose_template(base.processor)
        self._skeleton = functools.lru_cache(maxsize=512)(self._render_skeleton)
        self._lead = self._answer_lead()
        self.end_of_turn_id = self._end_of_turn()
        self.stop_ids = _stop_ids(base.model, self._tokenizer) | {self.end_of_turn_id}

    def prompt(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> RenderedPrompt:
        """Render a conversation.

        Image marks in user texts may show where pictures belong, if there are as many as pictures; pictures
        come first in their turn either way.

        Raises:
            InputError: no message, a picture outside a user turn, or marks and pictures that do not match.
        """
        texts, query_text, first_images = _checked(messages)
        shape: _Shape = tuple((message.role, message.images) for message in messages)
        ids = list(self._literal.head)
        for chunk in self._chunks(shape, texts, add_generation_prompt):
            ids += self._literal.encode(chunk)
        return self._expand(ids, query_text, first_images, sum(message.images for message in messages))

    def training(self, turns: Sequence[QuestionAnswer], images: int = 0) -> RenderedTraining:
        """Render a conversation to learn from: the loss is on answers and the token that ends each.

        Args:
            turns: questions with their answers.
            images: pictures of the first turn.

        Raises:
            InputError: there is no turn, or marks and pictures do not match.
        """
        messages: list[Message] = []
        for index, turn in enumerate(turns):
            messages.append(Message("user", turn.question, images if index == 0 else 0))
            messages.append(Message("assistant", turn.answer))
        texts, query_text, first_images = _checked(messages)
        shape: _Shape = tuple((message.role, message.images) for message in messages)
        ids, mask = list(self._literal.head), [False] * len(self._literal.head)
        chunks = self._chunks(shape, texts, add_generation_prompt=False)
        for index, chunk in enumerate(chunks[: 2 * len(turns)]):
            piece = self._literal.encode(chunk)
            answers = index % 2 == 1
            # The token after an answer, where the template writes it, is learned too.
            ends = index > 0 and not answers and piece[:1] == [self.end_of_turn_id]
            ids += piece
            mask += [answers or (ends and place == 0) for place in range(len(piece))]
        ids.append(self.end_of_turn_id)
        mask.append(True)
        rendered = self._expand(ids, query_text, first_images, images)
        return RenderedTraining(rendered, self._expand_mask(ids, mask))

    def _chunks(self, shape: _Shape, texts: list[str], add_generation_prompt: bool) -> list[list[Part]]:
        """Return the conversation cut around each assistant text; odd chunks are these texts."""
        pieces = self._skeleton(shape, add_generation_prompt)
        chunks: list[list[Part]] = [[]]
        for piece in pieces:
            if isinstance(piece, str):
                chunks[-1].append(Part(piece, literal=False))
            elif shape[piece][0] == "assistant":
                chunks.append([Part(self._answer(chunks[-1], texts[piece]), literal=True)])
                chunks.append([])
            else:
                chunks[-1].append(Part(texts[piece], literal=True))
        return chunks

    def _answer(self, before: list[Part], text: str) -> str:
        """Move what the template writes between the generation prompt and an answer into the answer."""
        if self._lead and before and before[-1].text.endswith(self._lead):
            before[-1] = Part(before[-1].text[: -len(self._lead)], literal=False)
            return self._literal.without_double_space(self._lead + text)
        return text

    def _render_skeleton(self, shape: _Shape, add_generation_prompt: bool) -> tuple[str | int, ...]:
        """Return the template's own text, with the index of a message wherever its text belongs."""
        rendered = self._render(shape, add_generation_prompt)
        pieces: list[str | int] = []
        for place, part in enumerate(_MARKS.split(rendered)):
            if place % 2:
                pieces.append(int(part))
            elif part:
                pieces.append(part)
        if [piece for piece in pieces if isinstance(piece, int)] != list(range(len(shape))):
            raise InputError(
                "this base's chat template cannot render these roles in this order", param="messages"
            )
        return tuple(pieces)

    def _render(self, shape: _Shape, add_generation_prompt: bool) -> str:
        conversation = [
            {"role": role, "content": self._content(_MARK.format(index), images)}
            for index, (role, images) in enumerate(shape)
        ]
        try:
            return self._tokenizer.apply_chat_template(
                conversation,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # noqa: BLE001 (a template may raise anything)
            raise InputError(
                f"this base's chat template refuses the conversation: {error}", param="messages"
            ) from None

    def _content(self, text: str, images: int) -> str | list[dict[str, str]]:
        if self._takes_parts:
            return [{"type": "image"}] * images + [{"type": "text", "text": text}]
        return f"{self._image_token}\n" * images + text

    def _choose_template(self, processor: Any) -> tuple[str, bool]:
        """Return the template and whether it takes content as parts (or as plain strings)."""
        template = (
            getattr(processor, "chat_template", None) or self._tokenizer.chat_template or CLASSIC_TEMPLATE
        )
        if isinstance(template, dict):
            template = template.get("default") or next(iter(template.values()))
        for takes_parts in (True, False):
            self._template, self._takes_parts = template, takes_parts
            try:
                rendered = self._render((("user", 1),), add_generation_prompt=True)
            except InputError:
                continue
            placed = (rendered.count(_MARK.format(0)), rendered.count(self._image_token))
            if placed == (1, 1) and "'type'" not in rendered:
                return template, takes_parts
        raise BaseModelError(
            "the base's chat template does not place one picture and one text in a user turn"
        )

    def _answer_lead(self) -> str:
        """Return what the template writes between its generation prompt and an answer (often nothing)."""
        prompt = self._render((("user", 0),), add_generation_prompt=True)
        answered = self._render((("user", 0), ("assistant", 0)), add_generation_prompt=False)
        before = answered[: answered.index(_MARK.format(1))]
        return before.removeprefix(prompt) if before.startswith(prompt) else ""

    def _end_of_turn(self) -> int:
        last = self._skeleton((("user", 0), ("assistant", 0)), add_generation_prompt=False)[-1]
        ids = self._literal.encode([Part(last, literal=False)]) if isinstance(last, str) else []
        if ids and ids[0] in self._literal.control_ids:
            return ids[0]
        if self._tokenizer.eos_token_id is None:
            raise BaseModelError("the base's tokenizer names no end-of-text token")
        return int(self._tokenizer.eos_token_id)

    def _expand(self, ids: list[int], query_text: str, first_images: int, images: int) -> RenderedPrompt:
        expanded: list[int] = []
        spans: list[tuple[int, int]] = []
        for token in ids:
            if token == self._image_token_id:
                spans.append((len(expanded), len(expanded) + self.image_tokens))
                expanded += [token] * self.image_tokens
            else:
                expanded.append(token)
        if len(spans) != images:
            raise BaseModelError(f"the chat template placed {len(spans)} pictures of {images}")
        return RenderedPrompt(expanded, tuple(spans), query_text, first_images)

    def _expand_mask(self, ids: list[int], mask: list[bool]) -> list[bool]:
        expanded: list[bool] = []
        for token, flag in zip(ids, mask, strict=True):
            expanded += [flag] * (self.image_tokens if token == self._image_token_id else 1)
        return expanded


def _checked(messages: Sequence[Message]) -> tuple[list[str], str, int]:
    """Return the texts without marks, the first user text and its picture count."""
    users = [message for message in messages if message.role == "user"]
    if not users:
        raise InputError("there is no user message", param="messages")
    texts: list[str] = []
    for message in messages:
        if message.role != "user":
            if message.images:
                raise InputError(
                    f"a picture in a {message.role} message: only users show pictures", param="messages"
                )
            texts.append(message.text)
            continue
        marks = message.text.count(IMAGE_MARK)
        if marks not in (0, message.images):
            raise InputError(
                f"a message has {marks} {IMAGE_MARK} marks but {message.images} pictures: give as many"
                " pictures as marks, or leave the marks out",
                param="messages",
            )
        texts.append(strip_image_marks(message.text))
    return texts, strip_image_marks(users[0].text).strip(), users[0].images


def _image_tokens(base: Base) -> int:
    """Return how many placeholders one picture takes."""
    config: Any = base.model.config
    processor: Any = base.processor
    vision = config.vision_config
    patch = getattr(processor, "patch_size", None)
    if patch is None:
        return int(config.image_seq_length)
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    count = (side // patch) ** 2 + (getattr(processor, "num_additional_image_tokens", 0) or 0)
    strategy = (
        getattr(processor, "vision_feature_select_strategy", None) or config.vision_feature_select_strategy
    )
    return int(count - (1 if strategy == "default" else 0))


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Collect what ends an answer by the generation config, the text model and the tokenizer."""
    found: set[int | None] = set()
    for config in (model.generation_config, model.config.text_config, tokenizer):
        named = getattr(config, "eos_token_id", None)
        found.update(named if isinstance(named, list | tuple) else [named])
    return frozenset(int(token) for token in found if token is not None)
