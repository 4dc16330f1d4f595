"""Turn a checked request into a sequence that leases its version's bank."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

from adapter_store.settings import DENSE_RANK
from server.engine.banks import Banks, spread
from server.engine.detokenizer import TextStream, TokenTexts
from server.engine.gathered import gate_of_rows, touched
from server.engine.prefix_cache import Segment, cut_prompt
from server.engine.protocol import Chunk, GenerationRequest
from server.engine.requests import answer_limit, check_request
from server.engine.sampler import make_generator
from server.engine.sequence import Sequence


class Intake:
    """Know what every request is checked against; runs in the caller's thread."""

    def __init__(
        self,
        banks: Banks,
        texts: TokenTexts,
        *,
        vocab_size: int,
        image_token_id: int,
        turn_end_ids: frozenset[int],
        max_model_len: int,
        dense_rank: int = DENSE_RANK,
    ) -> None:
        self.dense_rank = dense_rank
        self.banks, self.texts = banks, texts
        self.vocab_size, self.image_token_id = vocab_size, image_token_id
        self.turn_end_ids = turn_end_ids
        self.max_model_len = max_model_len

    def take(
        self,
        request: GenerationRequest,
        emit: Callable[[Chunk], None],
        enqueue: Callable[[Sequence], None],
    ) -> Sequence:
        """Check ``request``, count it in on its version, and hand the sequence to ``enqueue``.

        Raises:
            InputError: the request cannot be computed.
            NotFoundError: its version is not loaded.
            UnavailableError: ``enqueue`` refused; the version's count is back where it was.
        """
        check_request(
            request,
            vocab_size=self.vocab_size,
            image_token_id=self.image_token_id,
            max_model_len=self.max_model_len,
        )
        lease = self.banks.acquire(request.version)
        try:
            gate = spread(lease, request.coefficients)
            rows = touched(lease, gate, self.dense_rank)
            if gate is not None and rows is not None:
                gate = gate_of_rows(gate, rows, lease.rank)
            sequence = Sequence(
                request=request,
                emit=emit,
                stream=TextStream(self.texts, request.sampling.stop),
                max_tokens=answer_limit(request, self.max_model_len),
                lease=lease,
                gate=gate,
                rows=rows,
                segments=self._segments(request, gate, rows),
                generator=make_generator(request.sampling),
            )
            enqueue(sequence)
        except BaseException:
            self.banks.leave(lease)
            raise
        return sequence

    def _segments(
        self, request: GenerationRequest, gate: torch.Tensor | None, rows: tuple[int, ...] | None
    ) -> tuple[Segment, ...]:
        salt = b""
        gate_start = len(request.input_ids)
        if gate is not None:
            named = f"{request.version}|{rows}|".encode()
            salt = hashlib.sha256(named + gate.numpy().tobytes()).digest()
            gate_start = request.gate_start
        places = [i for i, token in enumerate(request.input_ids) if token == self.image_token_id]
        images: list[tuple[int, str]] = []
        used = 0
        for image in request.images:
            images.append((places[used], image.digest))
            used += image.embeds.shape[-2]
        return cut_prompt(
            request.input_ids, images, (request.gate_start, gate_start), self.turn_end_ids, salt
        )
