"""Publish one version under load, move the alias as the trainer does, and time what follows."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import httpx

from adapter_store.versions import STABLE, Manifest, VersionStore
from benchmarks.live.load import Answer, ask
from benchmarks.live.process import GatewayProcess
from benchmarks.live.questions import QUESTIONS, Asked
from benchmarks.live.versions import PROBE_PICTURE, Draft

LOOK_SECONDS = 0.02
_PATIENCE_SECONDS = 60.0
Kind = Literal["promoted", "rolled back", "refused"]


@dataclass(slots=True)
class Swap:
    """Hold what one published version went through; moments are seconds since 1970.

    Attributes:
        before: the version that served until then.
        kind: what was planned for it: to serve, to be rolled back after that, or to be refused by its probe.
        publish: when its publication began.
        published: when its manifest was there.
        moved: when the alias named it.
        last_old: when the last look began that was answered by the version before.
        first_new: when the first look began that was answered by this one (refused: that saw it refused).
        first_token: when the first answer by this version began to arrive.
        parts: seconds of the gateway's own steps, as its log says.
        failures: what went wrong, in words.
    """

    version: str
    kind: Kind
    size_bytes: int
    publish: float
    before: str = "base"
    published: float = 0.0
    moved: float = 0.0
    last_old: float = 0.0
    first_new: float = 0.0
    first_token: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def flip_seconds(self) -> float:
        """Return the time between the last look that got the old version and the first that got the new."""
        return self.first_new - self.last_old

    @property
    def to_answer_seconds(self) -> float:
        """Return the time from the beginning of the publication to the first token by this version."""
        return self.first_token - self.publish

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the figures that follow from the moments."""
        derived = {"flip_seconds": self.flip_seconds, "to_answer_seconds": self.to_answer_seconds}
        return {**asdict(self), **(derived if self.first_token else {})}


class Swapper:
    """Swap versions of one running gateway.

    Args:
        gateway: the running process.
        store: where it reads its versions.
    """

    def __init__(self, gateway: GatewayProcess, store: VersionStore) -> None:
        self._gateway = gateway
        self._store = store

    async def swap(self, draft: Draft, kind: Kind) -> tuple[Swap, list[Answer]]:
        """Publish, promote, watch, and ask once; returns the swap and the answers it asked for."""
        began = time.time()
        manifest = await asyncio.to_thread(draft.publish, self._store)
        size = (draft.folder / "state.safetensors").stat().st_size
        swap = Swap(manifest.version, kind, size, began, published=time.time())
        async with httpx.AsyncClient(base_url=self._gateway.url, timeout=30, trust_env=False) as client:
            swap.before = str((await client.get("/ready")).json().get("version"))
            swap.moved = swap.last_old = await asyncio.to_thread(self._move, manifest)
            await self._watch(client, swap)
        if kind == "refused":
            return swap, []
        answers = [await self._first_answer(swap)]
        swap.parts = await asyncio.to_thread(self._parts, swap)
        if kind == "rolled back":
            await self._roll_back(swap)
        return swap, answers

    def _move(self, manifest: Manifest) -> float:
        """Move the alias as the trainer does; return when it had moved."""
        self._store.aliases.move(STABLE, manifest.version, reason="benchmark", actor="trainer")
        moved = time.time()
        self._store.aliases.remember_previous()
        return moved

    async def _watch(self, client: httpx.AsyncClient, swap: Swap) -> None:
        """Look every 20 ms until the version serves or is refused."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            sent = time.time()
            state = (await client.get("/ready")).json()
            if state.get("version") == swap.version or swap.version in state.get("refused", {}):
                swap.first_new = sent
                served = state.get("version") == swap.version
                if served == (swap.kind == "refused"):
                    swap.failures.append("it serves though its probe fails" if served else "it was refused")
                return
            swap.last_old = sent
            await asyncio.sleep(max(0.0, sent + LOOK_SECONDS - time.time()))
        swap.failures.append("it did not serve in time")

    async def _first_answer(self, swap: Swap) -> Answer:
        answer = await ask(self._gateway.url, Asked(PROBE_PICTURE, QUESTIONS[0], 2), "strata")
        swap.first_token = answer.moments[0] if answer.moments else time.time()
        if answer.failure or answer.version != swap.version:
            swap.failures.append(answer.failure or f"{answer.version} answered the first request")
        return answer

    def _parts(self, swap: Swap) -> dict[str, float]:
        """Split the time to the first answer into what publisher, waiting and gateway took."""
        loaded = self._gateway.wait_said("version loaded", version=swap.version)
        serves = self._gateway.wait_said("stable serves", version=swap.version)
        if loaded is None or serves is None:
            return {}
        steps = {name[:-8]: seconds for name, seconds in loaded.items() if name.endswith("_seconds")}
        return {
            "publish": swap.published - swap.publish,
            "move": swap.moved - swap.published,
            "notice": max(0.0, loaded["at"] - sum(steps.values()) - swap.moved),
            **steps,
            "flip": max(0.0, serves["at"] - loaded["at"]),
            "answer": max(0.0, swap.first_token - serves["at"]),
        }

    async def _roll_back(self, swap: Swap) -> None:
        """Go back to the version before, over HTTP as an operator does."""
        async with httpx.AsyncClient(base_url=self._gateway.url, timeout=30, trust_env=False) as client:
            answer = await client.post("/v1/adapters/strata/rollback", json={})
            if answer.status_code != 200:
                swap.failures.append(f"rolling back: {answer.text[:200]}")
                return
            before = answer.json()["version"]
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while (await client.get("/ready")).json().get("version") != before:
                if time.monotonic() > deadline:
                    swap.failures.append("rolling back did not end")
                    return
                await asyncio.sleep(LOOK_SECONDS)
