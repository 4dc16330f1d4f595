"""Movable names for immutable versions.

Each move writes one new file ``aliases/<alias>/<revision>.json`` by exclusive create:
of several movers that saw the same revision exactly one succeeds (compare-and-set), and
the files are the history. An alias that ends gets such a record, too: it names nothing
until it is moved again, and its history stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from adapter_store.errors import AliasConflict, AliasCorrupt, ConflictError, InputError, NotFoundError
from adapter_store.names import BASE_VERSION, check_alias_name, check_version_id
from adapter_store.versions.storage import Storage

STABLE, PREVIOUS, CANARY, SHADOW = "stable", "previous", "canary", "shadow"
WEIGHTED = frozenset({CANARY, SHADOW})
"""Aliases that may take a share of the requests."""
_ATTEMPTS = 100


class AliasRecord(BaseModel):
    """Record one move of an alias; revision 1 is the first, times are seconds since 1970.

    Attributes:
        rolled_back_from: The version that a rollback left, None for an ordinary move.
        weight: The share of requests that a canary or shadow takes; None: it is asked by name only.
        since: The revision by which the version came to be named; a later weight keeps it. None in
            records of earlier programs.
        ended: Whether the alias names nothing from here on; ``version`` is what it named before.
        follows: Of ``previous``, the revision of ``stable`` whose move it remembers. None in records of
            earlier programs, by which somebody could set it, too.
    """

    model_config = ConfigDict(frozen=True)

    alias: str
    version: str
    revision: int
    moved_at: float
    reason: str
    actor: str
    rolled_back_from: str | None = None
    weight: float | None = None
    since: int | None = None
    ended: bool = False
    follows: int | None = None


@dataclass(frozen=True, slots=True)
class _Next:
    """What the next record of an alias says."""

    version: str
    rolled_back_from: str | None = None
    weight: float | None = None
    ended: bool = False
    follows: int | None = None


class AliasTable:
    """Read and move the aliases of one lineage.

    Args:
        storage: Where the lineage lives.
        exists: Tells whether a version is published; aliases never point elsewhere.
    """

    def __init__(self, storage: Storage, root: str, exists: Callable[[str], bool]) -> None:
        self._storage = storage
        self._root = f"{root}/aliases"
        self._exists = exists
        self._read: dict[str, AliasRecord] = {}

    def get(self, alias: str) -> AliasRecord | None:
        """Return where an alias points now; None if it ended or was never moved (``stable``: ``base``)."""
        record = self._newest(alias)
        return None if record is None or record.ended else record

    def move(
        self,
        alias: str,
        version: str,
        *,
        expected_revision: int | None = None,
        reason: str,
        actor: str,
        weight: float | None = None,
    ) -> AliasRecord:
        """Point an alias at a version and return the new record.

        Args:
            alias: Name of the alias.
            version: ``base`` or a published version.
            expected_revision: Revision that the caller saw; 0: the alias must not exist yet;
                None: move from wherever it is.
            reason: Why, for people.
            actor: Who, for people.
            weight: The share of requests, from 0 to 1, that a canary or shadow takes.

        Raises:
            AliasConflict: The alias is at another revision.
            NotFoundError: There is no such version.
            InputError: The alias or version has no valid name, is ``previous``, or the weight cannot be.
        """
        _check_movable(alias)
        check_version_id(version)
        _check_weight(alias, weight)
        if version != BASE_VERSION and not self._exists(version):
            raise NotFoundError(f"there is no version {version}; list the versions to see which there are")
        following = _Next(version, weight=weight)
        return self._append(alias, expected_revision, lambda _: following, reason, actor)

    def end(
        self, alias: str, *, expected_revision: int | None = None, reason: str, actor: str
    ) -> AliasRecord:
        """Let an alias name nothing from here on; return the record that says so.

        Raises:
            NotFoundError: It names nothing already.
            AliasConflict: The alias is at another revision.
            InputError: ``stable`` always names something, and ``previous`` follows it.
        """
        _check_movable(alias)
        if alias == STABLE:
            raise InputError("stable always names a version: move it or roll it back instead", param="alias")

        def last(history: list[AliasRecord]) -> _Next:
            if not history or history[-1].ended:
                raise NotFoundError(f"there is no alias {alias!r} that could be ended", param="alias")
            return _Next(history[-1].version, ended=True)

        return self._append(alias, expected_revision, last, reason, actor)

    def rollback(
        self, alias: str, *, expected_revision: int | None = None, reason: str, actor: str
    ) -> AliasRecord:
        """Point an alias at the version before, as a new revision; return its record.

        Rolling back twice goes two versions back, not forth again. Before its first
        version ``stable`` was ``base``.

        Raises:
            ConflictError: There is no version before.
            AliasConflict: The alias is at another revision.
            InputError: It is ``previous``.
        """
        _check_movable(alias)

        def before(history: list[AliasRecord]) -> _Next:
            stack = _stack(history, alias)
            if len(stack) < 2:
                raise ConflictError(f"alias {alias} has no version before the current one to go back to")
            return _Next(stack[-2], rolled_back_from=stack[-1])

        return self._append(alias, expected_revision, before, reason, actor)

    def remember_previous(self) -> None:
        """Let ``previous`` name what ``stable`` left by its newest move."""
        for _ in range(_ATTEMPTS):
            record, moves = self.get(PREVIOUS), self.history(STABLE)
            if not moves or _knows(record, moves[-1]):
                return
            newest = moves[-1]
            earlier = [move.version for move in moves if move.version != newest.version]
            following = _Next(earlier[-1] if earlier else BASE_VERSION, follows=newest.revision)
            reason, revision = f"stable before {newest.version}", record.revision if record else 0
            try:
                self._append(PREVIOUS, revision, lambda _, last=following: last, reason, newest.actor)
            except AliasConflict:
                continue  # another move was remembered at this moment: look again

    def history(self, alias: str) -> list[AliasRecord]:
        """Return every move of an alias, oldest first."""
        return [self._record(alias, revision) for revision in self._revisions(alias)]

    def named(self, alias: str) -> frozenset[str]:
        """Return every version that an alias names or has named."""
        return frozenset(record.version for record in self.history(alias))

    def all(self) -> dict[str, AliasRecord]:
        """Return where each alias points now."""
        found = {alias: self.get(alias) for alias in self._storage.list(self._root)}
        return {alias: record for alias, record in found.items() if record is not None}

    def _append(
        self,
        alias: str,
        expected: int | None,
        choose: Callable[[list[AliasRecord]], _Next],
        reason: str,
        actor: str,
    ) -> AliasRecord:
        check_alias_name(alias)
        for _ in range(_ATTEMPTS):
            history = self.history(alias)
            revision = history[-1].revision if history else 0
            if not _as_expected(history, expected):
                break
            following = choose(history)
            record = AliasRecord(
                alias=alias,
                revision=revision + 1,
                moved_at=time.time(),
                reason=reason,
                actor=actor,
                since=_since(history, following),
                **asdict(following),
            )
            if self._storage.create_exclusive(
                self._name(alias, revision + 1), record.model_dump_json().encode()
            ):
                return record
        raise AliasConflict(
            f"alias {alias} moved meanwhile (it is at revision {self._latest(alias)}, not {expected}):"
            " read it again and decide anew",
            param="If-Match",
        )

    def _newest(self, alias: str) -> AliasRecord | None:
        revisions = self._revisions(alias)
        return self._record(alias, revisions[-1]) if revisions else None

    def _latest(self, alias: str) -> int:
        return max(self._revisions(alias), default=0)

    def _revisions(self, alias: str) -> list[int]:
        names = self._storage.list(f"{self._root}/{check_alias_name(alias)}")
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    def _record(self, alias: str, revision: int) -> AliasRecord:
        name = self._name(alias, revision)
        if name not in self._read:
            try:
                self._read[name] = AliasRecord.model_validate_json(self._storage.read(name))
            except ValidationError:
                raise AliasCorrupt(
                    f"revision {revision} of alias {alias} is damaged: restore {name} in the version store"
                    f" from a backup, or remove it, and {alias} is where it was before that move"
                ) from None
        return self._read[name]

    def _name(self, alias: str, revision: int) -> str:
        return f"{self._root}/{alias}/{revision:010d}.json"


def _stack(history: list[AliasRecord], alias: str) -> list[str]:
    """Return the versions up to the current one: a move puts one on top, a rollback takes one off."""
    stack = [BASE_VERSION] if alias == STABLE else []
    for record in history:
        if record.ended:
            stack.clear()
        elif record.rolled_back_from is not None:
            stack.pop()
        elif not stack or stack[-1] != record.version:
            stack.append(record.version)
    return stack


def _knows(record: AliasRecord | None, newest: AliasRecord) -> bool:
    """Tell whether ``previous`` remembers the newest move of ``stable``."""
    return record is not None and record.follows is not None and record.follows >= newest.revision


def _as_expected(history: list[AliasRecord], expected: int | None) -> bool:
    """Tell whether the alias is where its mover saw it; what has ended does not exist, so 0 fits, too."""
    if expected is None or not history:
        return not expected
    return expected == history[-1].revision or (expected == 0 and history[-1].ended)


def _since(history: list[AliasRecord], following: _Next) -> int:
    """Return the revision by which the version of ``following`` came to be named without a break."""
    if not history or history[-1].ended or history[-1].version != following.version:
        return history[-1].revision + 1 if history else 1
    return history[-1].since or history[-1].revision


def _check_movable(alias: str) -> None:
    """Refuse to set what the service keeps: an operator would think that a roll back goes there."""
    if alias == PREVIOUS:
        text = "previous names what stable left by its newest move and is moved with it, never by hand"
        advice = "to serve a version move stable, to keep a name for one use another alias"
        raise InputError(f"{text}: {advice}; a roll back goes by the history of stable", param="alias")


def _check_weight(alias: str, weight: float | None) -> None:
    if weight is None:
        return
    if alias not in WEIGHTED:
        raise InputError(f"alias {alias!r} takes no weight: only canary and shadow do", param="weight")
    if not 0 <= weight <= 1:
        raise InputError(f"weight is {weight}: it is a share of the requests, from 0 to 1", param="weight")
