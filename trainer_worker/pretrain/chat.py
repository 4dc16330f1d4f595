"""Make the text-only part of the mix: replies of the untouched language model to its own prompts.

Learning to look must not cost the ability to talk: a share of the steps repeats what the model said before.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

_TOPICS = """
the sea; a bicycle; bread; the moon; friendship; a garden; winter; coffee; a library; music; rain;
a bridge; trees; sleep; a market; time; the desert; glass; a river; cooking; paper; the wind;
a train; salt; dreams; a clock; the forest; honey; a mountain; snow; a teacher; the city; clouds;
a window; fire; tea; a kitchen; history; a letter; sports; the summer
"""
_ASKS = (
    "Tell me something about {t}.",
    "Write a short sentence about {t}.",
    "What do you think about {t}?",
    "Why do people like {t}?",
    "Explain {t} to a child.",
    "Give me one fact about {t}.",
    "How would you describe {t}?",
    "Write a short poem about {t}.",
    "What is important about {t}?",
)
_PLAIN = """
Hello!; Hi, how are you?; Who are you?; What can you do?; Thank you!;
What is the capital of France?; What is the capital of Italy?; Name three fruits.;
What is water made of?; How do plants grow?; What is the opposite of hot?; Can you help me?;
Tell me a joke.; What is a computer?; Good morning!; Why is the sky blue?; How do I make tea?;
What is the largest ocean?; Who wrote Hamlet?; Translate 'good night' into French.;
What do bees make?; List the seasons.; What is gravity?; Give me advice for a job interview.;
How can I sleep better?; What is a good breakfast?; Write an email to my boss.;
What is the meaning of life?; How do I learn a language?; Goodbye!
"""


def prompts(count: int, seed: int) -> list[str]:
    """Return `count` different prompts; the first are the plain ones."""
    rng = random.Random(f"chat-{seed}")
    combined = [ask.format(t=topic) for ask in _ASKS for topic in _split(_TOPICS)]
    rng.shuffle(combined)
    return [*_split(_PLAIN), *combined][:count]


def _split(listing: str) -> list[str]:
    return [" ".join(item.split()) for item in listing.split(";")]


def held_out_prompts() -> list[str]:
    """Return prompts that no training run has seen: other topics, other questions."""
    topics = (
        "a violin",
        "the harvest",
        "an island",
        "patience",
        "a lighthouse",
        "silver",
        "a festival",
        "the sunrise",
    )
    asks = (
        "What comes to mind when you hear about {t}?",
        "Tell me something about {t}.",
        "Why is {t} interesting?",
    )
    more = (
        "What is the capital of Japan?",
        "How do birds fly?",
        "Recommend a hobby.",
        "What is the opposite of big?",
    )
    return [*more, *(ask.format(t=topic) for ask in asks for topic in topics)]


@torch.no_grad()
def reply_to(model: Any, tokenizer: Any, requests: list[str], max_new_tokens: int = 40) -> list[list[int]]:
    """Let a language model answer prompts greedily.

    Args:
        model: A causal language model or LLaVA.
        tokenizer: The base's tokenizer (padded on the left).
        requests: Prompts.
        max_new_tokens: Length at which a reply is cut.

    Returns:
        Reply tokens of every prompt; a reply that came to its end has the end token last.
    """
    replies: list[list[int]] = []
    for start in range(0, len(requests), 64):
        texts = [
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
            for text in requests[start : start + 64]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        replies += [_cut(row) for row in output[:, inputs["input_ids"].shape[1] :]]
    return replies


def _cut(row: Tensor) -> list[int]:
    tokens = row.tolist()
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
