"""Cached prefixes and packed questions change nothing in what the model says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.trainer_worker.conftest import Parts
from trainer_worker.evaluate import Served, base_only, forward, greedy_answer, score_base, score_state, warm
from trainer_worker.language import LanguageModel
from trainer_worker.replicas import Replicas
from trainer_worker.samples import batches_of, build_batch, pack_rows


def logits_of(parts: Parts, encoded, order, *, pack: int, cached: bool, activate, store=None):
    store = store or parts.store(encoded)
    rows = pack_rows(encoded.samples, order, pack=pack, alike=None)
    batch = build_batch(encoded.samples, encoded.prefixes, rows, cached=cached)
    with torch.no_grad():
        logits = forward(parts.replicas.first, batch, store, activate)
    owners = [batch.sample_of_answer[n] for n in batch.answer_of.tolist()]
    return {owner: logits[[i for i, o in enumerate(owners) if o == owner]] for owner in order}


def test_the_cached_prefix_gives_the_logits_of_the_whole_model(parts: Parts):
    encoded = parts.encode(count=3)
    cached = logits_of(parts, encoded, [0, 1, 2], pack=1, cached=True, activate=base_only)
    sample, prefix = encoded.samples[1], encoded.prefixes[encoded.samples[1].prefix]
    ids = torch.tensor([[*prefix.ids, *sample.tail]])
    assert encoded.pictures is not None
    assert prefix.image is not None
    embeds = parts.replicas.language.embed(ids, encoded.pictures[prefix.image][None])
    with torch.no_grad():
        whole = parts.base.model(inputs_embeds=embeds).logits[0]
    places = [len(prefix.ids) + i - 1 for i, wanted in enumerate(sample.answer) if wanted]
    assert torch.allclose(cached[1], whole[places], atol=1e-4)


@pytest.mark.parametrize("cached", [True, False])
def test_packed_questions_do_not_see_each_other(parts: Parts, cached: bool):
    encoded = parts.encode(count=2, questions=3)
    state = parts.taught(parts.untaught(), "colors", encoded, random_up=True)
    served = Served.of(state, parts.replicas.increments)
    activate = served.activate(served.coefficients(encoded.queries))
    if not cached:  # span "all" packs equal coefficients only
        activate = served.activate(torch.ones(len(encoded), state.rows) / state.rows)
    order = list(range(6))
    packed = logits_of(parts, encoded, order, pack=3, cached=cached, activate=activate)
    alone = logits_of(parts, encoded, order, pack=1, cached=cached, activate=activate)
    for index in order:
        assert torch.allclose(packed[index], alone[index], atol=1e-4)
    plain = logits_of(parts, encoded, order, pack=3, cached=cached, activate=base_only)
    assert not torch.allclose(packed[0], plain[0], atol=1e-2)


@pytest.mark.parametrize("first_layer", [0, 1])
def test_the_store_keeps_what_fits_and_computes_the_rest(parts: Parts, first_layer: int):
    language = LanguageModel.of(parts.base.model, parts.base.image_token_id, first_layer)
    replicas = Replicas(language, parts.replicas.increments)
    encoded = parts.encode(count=6)
    everything = parts.store(encoded)
    warm(replicas, encoded.samples, everything, range(6))
    assert everything.kept == 6
    per_picture = everything.kept_bytes // 6
    little = parts.store(encoded, budget_bytes=2 * per_picture)
    for index in range(6):
        warm(replicas, encoded.samples, little, [index])
    assert little.kept == 2
    assert little.kept_bytes <= 2 * per_picture
    rows = pack_rows(encoded.samples, [0, 5], pack=1, alike=None)
    batch = build_batch(encoded.samples, encoded.prefixes, rows, cached=True)
    (kept, entering), (computed, anew) = (store.enter(language, batch) for store in (everything, little))
    assert kept is not None
    assert computed is not None
    assert torch.allclose(kept, computed, atol=1e-5)
    assert (entering is None) == (anew is None) == (first_layer == 0)
    if entering is not None and anew is not None:  # padding between the pieces is of no concern
        for row, start, end in batch.pieces:
            assert torch.allclose(entering[row, start:end], anew[row, start:end], atol=1e-5)
    layers = parts.untaught().shapes["o_proj"][0]
    assert len(kept) == layers - first_layer


def test_batches_hold_every_sample_once_and_one_prefix_length(parts: Parts):
    encoded = parts.encode(count=7, questions=2)
    rows = pack_rows(encoded.samples, range(14), pack=4, alike=None)
    lengths = [len(prefix.ids) for prefix in encoded.prefixes]
    groups = list(batches_of(rows, lengths, batch_size=4, rng=None))
    assert sorted(i for group in groups for row in group for i in row.samples) == list(range(14))
    assert all(len({lengths[row.prefix] for row in group}) == 1 for group in groups)


def test_zero_coefficients_score_as_the_base_and_the_greedy_answer_agrees_with_teacher_forcing(parts: Parts):
    encoded = parts.encode(count=4)
    store = parts.store(encoded)
    state = parts.taught(parts.untaught(), "colors", encoded, random_up=True)
    base = score_base(parts.replicas, encoded, store)
    silent = Served.of(state.with_routing(tau=1.0), parts.replicas.increments)
    assert score_state(parts.replicas, silent, encoded, store) == base
    served = Served.of(state, parts.replicas.increments)
    activate = served.activate(served.coefficients(encoded.queries))
    ids, logprobs = greedy_answer(
        parts.replicas.first,
        encoded.samples[2],
        store,
        activate,
        cached=True,
        end_ids=parts.stop_ids,
        max_tokens=5,
    )
    forced = logits_of(parts, encoded, [2], pack=1, cached=True, activate=activate)[2]
    assert ids[0] == int(forced[0].argmax())
    assert logprobs[0] == pytest.approx(float(forced[0].log_softmax(0).max()), abs=1e-4)
    assert len(ids) == len(logprobs) <= 5


def test_frozen_lower_layers_run_once_per_question_and_change_nothing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    encoded = parts.encode(count=3, questions=2)
    order = list(range(6))
    state = parts.taught(parts.untaught(), "colors", encoded, random_up=True)
    rows = state.rows_of("colors")
    upper_only = {name: up[:, rows].clone() for name, up in state.up.items()}
    for up in upper_only.values():
        up[0] = 0
    served = Served.of(state.with_rows(rows, up=upper_only), parts.replicas.increments)
    activate = served.activate(served.coefficients(encoded.queries))
    whole = logits_of(parts, encoded, order, pack=2, cached=True, activate=activate)

    language = LanguageModel.of(parts.base.model, parts.base.image_token_id, 1)
    split = replace(parts, replicas=Replicas(language, parts.replicas.increments))
    store = split.store(encoded)
    first = logits_of(split, encoded, order, pack=2, cached=True, activate=activate, store=store)
    monkeypatch.setattr(LanguageModel, "below", None)
    again = logits_of(split, encoded, order, pack=1, cached=True, activate=activate, store=store)
    for index in order:
        assert torch.allclose(first[index], whole[index], atol=1e-4)
        assert torch.allclose(again[index], whole[index], atol=1e-4)
