"""Run the language model: one token for every decoding row, or a padded batch of prompt pieces."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from server.engine.attention import use_grouped_attention
from server.engine.gathered import Gatherer
from server.engine.kv_cache import KeyValues, SlottedCache
from server.engine.linears import swap_products
from server.engine.scheduler import Piece
from server.engine.sequence import Sequence

if TYPE_CHECKING:
    from adapter_store.increments import GatheredTerm, Increments
    from server.engine.banks import BankSlot


class Runner:
    """Own the frozen model, the increments on it and the rows' key-value memory."""

    def __init__(
        self,
        model: Any,
        increments: Increments,
        *,
        image_token_id: int,
        max_batch: int,
        max_model_len: int,
        kv_bytes: int,
    ) -> None:
        """Prepare a ``LlavaForConditionalGeneration`` that ``increments`` are attached to."""
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head
        self.embed_tokens = model.get_input_embeddings()
        self.increments = increments
        self.gatherer = Gatherer(increments.targets)
        self.image_token_id = image_token_id
        config = self.language_model.config
        self.groups = use_grouped_attention(self.language_model)
        swap_products(self.language_model)
        swap_products(self.lm_head)
        weight = self.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.memory = KeyValues(
            layers=config.num_hidden_layers,
            heads=config.num_key_value_heads,
            head_dim=head_dim,
            dtype=self.dtype,
            device=self.device,
            max_slots=max_batch,
            max_length=max_model_len,
            max_bytes=kv_bytes,
        )
        self.cache = SlottedCache(self.memory)

    def decode(self, rows: Rows[Sequence]) -> torch.Tensor:
        """Compute ``[B, hidden]`` after each row's newest token; ``rows[i]`` lies in slot i."""
        ids = self._long([row.output[-1] for row in rows])
        positions = self._long([row.filled for row in rows])
        visible = max(row.filled for row in rows) + 1
        self.cache.bind(list(range(len(rows))), positions[:, None], visible)
        mask = self._mask(positions[:, None], visible)
        with self._adapted(rows, None):
            return self._forward(self.embed_tokens(ids)[:, None], mask, positions[:, None])[:, 0]

    def prefill(self, pieces: Rows[Piece]) -> torch.Tensor:
        """Compute P prompt pieces, right-padded; give ``[P, hidden]`` after each piece."""
        sizes = [piece.stop - piece.start for piece in pieces]
        width = max(sizes)
        starts = self._long([piece.start for piece in pieces])[:, None]
        offsets = torch.arange(width, device=self.device)[None]
        real = offsets < self._long(sizes)[:, None]
        seen = torch.where(real, starts + offsets, 0)
        self.cache.bind(
            [piece.sequence.slot for piece in pieces],
            torch.where(real, starts + offsets, self.memory.length - 1),
            max(piece.stop for piece in pieces),
        )
        embeds = torch.zeros(len(pieces), width, self._width, dtype=self.dtype, device=self.device)
        for index, piece in enumerate(pieces):
            embeds[index, : sizes[index]] = self._embed(piece)
        mask = self._mask(seen, self.cache.visible).repeat(1, 1, self.groups, 1)
        with self._adapted([piece.sequence for piece in pieces], seen):
            hidden = self._forward(embeds, mask, seen)
        return hidden[torch.arange(len(pieces), device=self.device), self._long(sizes) - 1]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map hidden states ``[n, hidden]`` to scores ``[n, V]``."""
        return self.lm_head(hidden)

    @property
    def _width(self) -> int:
        return self.embed_tokens.weight.shape[1]

    def _long(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _forward(self, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def _mask(self, positions: torch.Tensor, visible: int) -> torch.Tensor:
        """Let tokens at ``positions`` ``[B, T]`` see nothing later: additive ``[B, 1, T, visible]``."""
        hidden = torch.arange(visible, device=self.device) > positions[:, None, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, float("-inf"))

    def _embed(self, piece: Piece) -> torch.Tensor:
        """Give a piece's input embeddings ``[T, hidden]``, pictures in place of their placeholders."""
        sequence = piece.sequence
        embeds = sequence.embeds
        if embeds is None:
            request = sequence.request
            ids = self._long(list(request.input_ids))
            embeds = self.embed_tokens(ids).clone()
            if request.images:
                pictures = torch.cat([image.embeds.reshape(-1, self._width) for image in request.images])
                embeds[ids == self.image_token_id] = pictures.to(self.device, self.dtype)
            sequence.embeds = embeds
        return embeds[piece.start : piece.stop]

    def _adapted(self, rows: Rows[Sequence], positions: torch.Tensor | None) -> AbstractContextManager[Any]:
        """Switch on one term for each bank that these rows use whole, and one for all gathered rows (eq. 6).

        Args:
            rows: the B rows of this forward.
            positions: ``[B, T]`` prompt positions, for the gate acts from ``gate_start`` on; None when all
            are adapted.
        """
        from adapter_store.increments import Term

        if all(row.gate is None for row in rows):
            return nullcontext()
        reach = None
        if positions is not None:
            starts = self._long([row.request.gate_start for row in rows])
            reach = (positions >= starts[:, None])[..., None]
            gathered = self.gatherer.prefill_term(rows, reach)
        else:
            gathered = self.gatherer.decode_term(rows)
        terms: list[Term | GatheredTerm] = [] if gathered is None else [gathered]
        members: dict[BankSlot, list[int]] = {}
        for place, row in enumerate(rows):
            if row.gate is not None and row.rows is None:
                members.setdefault(row.lease, []).append(place)
        for slot, places in members.items():
            gates = [gate for place in places if (gate := rows[place].gate) is not None]
            gate = torch.stack(gates).to(self.device, self.dtype)[:, None]
            own = None if len(places) == len(rows) else self._long(places)
            if reach is not None:
                gate = gate * (reach if own is None else reach[own])
            terms.append(Term(slot.bank, gate, own))
        return self.increments.active(terms)
