"""Movable names for immutable versions."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class AliasRecord(BaseModel):
    """One revision of an alias; revision 1 is the first."""

    model_config = ConfigDict(frozen=True)

    alias: str
    version: str
    revision: int
    moved_at: float
    reason: str
    actor: str
    rolled_back_from: str | None = None


class AliasTable:
    """Read and move aliases by compare-and-set."""

    def get(self, alias: str) -> AliasRecord | None:
        raise NotImplementedError

    def move(
        self, alias: str, version: str, *, expected_revision: int | None = None, reason: str, actor: str
    ) -> AliasRecord:
        """Point the alias at a version. expected_revision: 0 = must not exist yet, None = whatever it is.

        Raises AliasConflict, NotFoundError (no such version), InputError.
        """
        raise NotImplementedError

    def rollback(
        self, alias: str, *, expected_revision: int | None = None, reason: str, actor: str
    ) -> AliasRecord:
        """Point the alias at the version before; ConflictError if there is none."""
        raise NotImplementedError

    def history(self, alias: str) -> list[AliasRecord]:
        """Return every revision, oldest first."""
        raise NotImplementedError

    def all(self) -> dict[str, AliasRecord]:
        raise NotImplementedError
