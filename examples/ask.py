"""Ask a running Strata about a picture, as any client of the OpenAI API would; print the answer as it comes.

Usage: python examples/ask.py PICTURE QUESTION [MODEL]
Environment: STRATA_URL (http://127.0.0.1:8000), STRATA_API_KEY if the server asks for one.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path

import httpx


def message_of(response: httpx.Response) -> str:
    """Return what the server said is wrong."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered with status {response.status_code}"


def ask(picture: Path, question: str, model: str = "strata") -> str:
    """Stream one answer to standard output and return it; end with the server's words if it refuses."""
    data = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": question}]
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": content}]}
    answer = ""
    server = os.environ.get("STRATA_URL", "http://127.0.0.1:8000")
    key = {"authorization": f"Bearer {os.environ.get('STRATA_API_KEY', 'none')}"}
    url = f"{server}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=key, timeout=120.0) as response:
        if response.is_error:
            response.read()
            sys.exit(f"error: {message_of(response)}")
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    sys.exit(f"\nerror: {event['error']['message']}")
                for choice in event["choices"]:
                    piece = choice["delta"].get("content") or ""
                    answer += piece
                    print(piece, end="", flush=True)
    print()
    return answer


if __name__ == "__main__":
    if len(sys.argv) not in {3, 4}:
        sys.exit(__doc__)
    try:
        ask(Path(sys.argv[1]), *sys.argv[2:])
    except (httpx.HTTPError, OSError) as error:
        sys.exit(f"error: {error}")
