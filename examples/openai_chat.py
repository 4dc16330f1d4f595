"""Talk with a running Strata about a picture through the OpenAI client: several turns, streamed.

Needs the package openai. Usage: python examples/openai_chat.py PICTURE QUESTION [QUESTION ...]
Environment: STRATA_URL (http://127.0.0.1:8000), STRATA_API_KEY if the server asks for one.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

from openai import APIError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

SERVER = os.environ.get("STRATA_URL", "http://127.0.0.1:8000")


def picture_turn(picture: Path, question: str) -> ChatCompletionMessageParam:
    """Return the turn that shows the picture and asks the first question."""
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    return {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ],
    }


def talk(client: OpenAI, picture: Path, questions: list[str], model: str = "strata") -> list[str]:
    """Ask one question after the other in one conversation; print and return the answers."""
    turns: list[ChatCompletionMessageParam] = []
    answers = []
    for question in questions:
        turns.append({"role": "user", "content": question} if turns else picture_turn(picture, question))
        answer, version = "", ""
        for chunk in client.chat.completions.create(model=model, messages=turns, max_tokens=64, stream=True):
            version = chunk.system_fingerprint or version
            for choice in chunk.choices:
                answer += choice.delta.content or ""
                print(choice.delta.content or "", end="", flush=True)
        print(f"   ({version})")
        turns.append({"role": "assistant", "content": answer})
        answers.append(answer)
    return answers


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        with OpenAI(base_url=f"{SERVER}/v1", api_key=os.environ.get("STRATA_API_KEY", "none")) as opened:
            talk(opened, Path(sys.argv[1]), sys.argv[2:])
    except (APIError, OSError) as error:
        sys.exit(f"error: {error}")
