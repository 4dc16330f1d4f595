"""Write the boards as the files that Grafana is provisioned from."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.boards import adaptation, forgetting, serving

FOLDER = Path(__file__).resolve().parents[1] / "dashboards"
BOARDS = {"serving": serving.BOARD, "adaptation": adaptation.BOARD, "forgetting": forgetting.BOARD}


def texts() -> dict[str, str]:
    """Return what each file must hold, by its name."""
    return {
        f"{name}.json": json.dumps(board.to_json(), indent=1, ensure_ascii=False) + "\n"
        for name, board in BOARDS.items()
    }


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
