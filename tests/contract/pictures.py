"""Pictures and data sets to send."""

from __future__ import annotations

import base64
import io
import json
import zipfile

from PIL import Image


def png(color: str, size: int = 28) -> bytes:
    """Return a PNG of one color."""
    stream = io.BytesIO()
    Image.new("RGB", (size, size), color).save(stream, "PNG")
    return stream.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def examples(count: int = 4) -> list[dict[str, str]]:
    """Return plain examples with inline pictures, each another one."""
    colors = ("red", "green", "blue", "white", "black", "yellow")
    return [
        {
            "image": data_url(png(colors[i % len(colors)], 20 + i)),
            "question": "Which color is it?",
            "answer": colors[i % len(colors)],
        }
        for i in range(count)
    ]


def llava_zip(count: int = 4) -> bytes:
    """Return a zip with LLaVA JSON and an image folder."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        records = []
        for i, example in enumerate(examples(count)):
            name = f"images/{i}.png"
            archive.writestr(name, base64.b64decode(example["image"].partition(",")[2]))
            turns = [
                {"from": "human", "value": f"<image>\n{example['question']}"},
                {"from": "gpt", "value": example["answer"]},
            ]
            records.append({"id": str(i), "image": name, "conversations": turns})
        archive.writestr("data.json", json.dumps(records))
    return stream.getvalue()
