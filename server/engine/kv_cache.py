"""Hold the keys and values of all running rows in slots, and lend them to the language model.

Row i of a decode batch is slot i, so a batch reads its keys as a view: no gathering, no paging. Rows are kept
dense by moving one row when another leaves. Memory grows with the rows and lengths in use and shrinks when
idle.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_LENGTH_STEP = 128
_FIRST_SLOTS = 4


class KeyValues:
    """Own one tensor ``[2, slots, length, heads * head_dim]`` per layer; index 0 holds keys, 1 values.

    The last position of every slot is scratch: padded prompt positions are written there and never seen.
    Unused memory is zero, because a masked value of NaN would still poison the sum.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        max_slots: int,
        max_length: int,
        max_bytes: int,
    ) -> None:
        self.layers, self.heads, self.head_dim = layers, heads, head_dim
        self.dtype, self.device = dtype, device
        self.max_slots, self.max_length, self.max_bytes = max_slots, max_length, max_bytes
        self.token_bytes = 2 * layers * heads * head_dim * dtype.itemsize
        self.slots = self.length = 0
        self.store: list[torch.Tensor] = []

    @property
    def nbytes(self) -> int:
        """Give the bytes held now."""
        return self.slots * self.length * self.token_bytes

    def fits(self, slots: int, length: int) -> bool:
        """Tell whether ``slots`` rows of ``length`` tokens stay within the limits; one row always does."""
        if slots > self.max_slots or length > self.max_length:
            return False
        return slots == 1 or self._round(length) * slots * self.token_bytes <= self.max_bytes

    def ensure(self, slots: int, length: int) -> None:
        """Make room for ``slots`` rows of ``length`` tokens; if memory runs out, all is lost.

        No row may stand beyond them: where keeping more would break the bound, it is given up.
        """
        if slots <= self.slots and length < self.length:
            return
        new_length = max(self.length, self._round(length))
        new_slots = max(self.slots, slots)
        doubled = min(self.max_slots, max(_FIRST_SLOTS, 2 * self.slots))
        if slots > self.slots and new_length * doubled * self.token_bytes <= self.max_bytes:
            new_slots = max(new_slots, doubled)
        if new_slots * new_length * self.token_bytes > self.max_bytes:
            new_slots, new_length = slots, self._round(length)
        self._resize(new_slots, new_length)

    def shrink(self) -> None:
        """Give all memory back; only when no row is running."""
        self.slots = self.length = 0
        self.store = []

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of slot ``source`` to slot ``target``."""
        for layer in self.store:
            layer[:, target, :length].copy_(layer[:, source, :length])

    def swap(self, a: int, b: int, length: int) -> None:
        """Exchange the first ``length`` tokens of two slots."""
        for layer in self.store:
            kept = layer[:, a, :length].clone()
            layer[:, a, :length].copy_(layer[:, b, :length])
            layer[:, b, :length].copy_(kept)

    def clear(self, slot: int) -> None:
        """Zero a slot, so that nothing non-finite stays behind."""
        for layer in self.store:
            layer[:, slot].zero_()

    def read(self, slot: int, start: int, stop: int) -> torch.Tensor:
        """Copy tokens ``start`` to ``stop`` of a slot: ``[layers, 2, stop - start, heads * head_dim]``."""
        return torch.stack([layer[:, slot, start:stop] for layer in self.store])

    def write(self, slot: int, start: int, tokens: torch.Tensor) -> None:
        """Copy what ``read`` gave into a slot at ``start``."""
        stop = start + tokens.shape[2]
        for layer, part in zip(self.store, tokens, strict=True):
            layer[:, slot, start:stop].copy_(part)

    def _round(self, length: int) -> int:
        return -(-(length + 1) // _LENGTH_STEP) * _LENGTH_STEP

    def _resize(self, slots: int, length: int) -> None:
        shape = (2, slots, length, self.heads * self.head_dim)
        rows, tokens = min(slots, self.slots), min(length, self.length) - 1
        kept, self.store = self.store, []
        try:
            for index in range(self.layers):
                new = torch.zeros(shape, dtype=self.dtype, device=self.device)
                if kept:
                    new[:, :rows, :tokens].copy_(kept[index][:, :rows, :tokens])
                    kept[index] = new  # the old layer's memory is free before the next one is made
                self.store.append(new)
        except Exception:
            self.shrink()
            raise
        self.slots, self.length = slots, length


class _SlotLayer(CacheLayerMixin):
    """Stand for one layer where the library asks for layers; ``SlottedCache`` does the work."""

    is_sliding = False

    def __init__(self, cache: SlottedCache) -> None:
        super().__init__()
        self.cache = cache
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: memory belongs to ``KeyValues``."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: object,  # noqa: ARG002 - the library's signature
        **kwargs: object,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward to the cache, which knows its layers by index."""
        return self.cache.update(key_states, value_states, self.cache.layers.index(self))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """Give the visible length and offset 0."""
        return self.cache.visible, 0

    def get_seq_length(self) -> int:
        """Give the visible length."""
        return self.cache.visible

    def get_max_length(self) -> int:
        """Give the longest length a row may reach."""
        return self.cache.memory.max_length


class SlottedCache(Cache):
    """Show ``KeyValues`` to the language model as a cache whose rows stand at different positions."""

    def __init__(self, memory: KeyValues) -> None:
        self.memory = memory
        self.visible = 0
        self._rows: torch.Tensor | slice = slice(0)
        self._flat = torch.empty(0, dtype=torch.long)
        super().__init__(layers=[_SlotLayer(self) for _ in range(memory.layers)])

    def bind(self, slots: list[int], positions: torch.Tensor, visible: int) -> None:
        """Set where the next forward writes and what it reads.

        Args:
            slots: slot of every row; neighbors in order are read as a view, others are gathered.
            positions: ``[B, T]`` int64, where each new token's key goes in its slot.
            visible: how many leading positions are returned.
        """
        first, count = slots[0], len(slots)
        rows = torch.tensor(slots, device=positions.device)
        self._flat = (rows[:, None] * self.memory.length + positions).flatten()
        self._rows = slice(first, first + count) if slots == list(range(first, first + count)) else rows
        self.visible = visible

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,  # noqa: ARG002 - the library's signature
        **kwargs: object,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values ``[B, heads, T, D]`` and return those visible, ``[B, heads, visible, D]``."""
        layer = self.memory.store[layer_idx]
        return self._put(layer[0], key_states), self._put(layer[1], value_states)

    def _put(self, store: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        width = store.shape[-1]
        store.view(-1, width).index_copy_(0, self._flat, states.transpose(1, 2).reshape(-1, width))
        seen = store[:, : self.visible][self._rows]
        return seen.view(seen.shape[0], self.visible, self.memory.heads, self.memory.head_dim).transpose(1, 2)
