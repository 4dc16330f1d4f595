"""Versions: immutable directories of adapter files, and the aliases that move between them."""

from adapter_store.versions.aliases import CANARY, SHADOW, STABLE, WEIGHTED, AliasRecord, AliasTable
from adapter_store.versions.manifest import (
    Anchor,
    Gate,
    Manifest,
    ManifestDraft,
    MeasuredOn,
    Probe,
    comparable_since,
)
from adapter_store.versions.store import VersionStore

__all__ = [
    "CANARY",
    "SHADOW",
    "STABLE",
    "WEIGHTED",
    "AliasRecord",
    "AliasTable",
    "Anchor",
    "Gate",
    "Manifest",
    "ManifestDraft",
    "MeasuredOn",
    "Probe",
    "VersionStore",
    "comparable_since",
]
