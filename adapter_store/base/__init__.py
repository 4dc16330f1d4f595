"""Assemble and load the frozen LLaVA base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapter_store.base.assemble import ensure_embedded_base
    from adapter_store.base.load import Base, load_base

__all__ = ["Base", "ensure_embedded_base", "load_base"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that the allocator can be tuned before torch is imported."""
    if name == "ensure_embedded_base":
        from adapter_store.base.assemble import ensure_embedded_base

        return ensure_embedded_base
    if name in ("Base", "load_base"):
        from adapter_store.base import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
