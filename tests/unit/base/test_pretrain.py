"""Check the training's own machinery: exact gradients, packing without cross-talk, honest pictures."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer_worker.pretrain.charts import chart_picture
from trainer_worker.pretrain.chat import held_out_prompts, prompts
from trainer_worker.pretrain.language import PackedLanguageModel, _LowRankLinear, _RmsNorm, _SwiGlu
from trainer_worker.pretrain.packing import Row, Segment, collate
from trainer_worker.pretrain.picture import COLORS, GRID, Picture
from trainer_worker.pretrain.scenes import generic_probe, make_scene, scene_picture
from trainer_worker.pretrain.visual import Projector
from trainer_worker.pretrain.words import LETTERS, WORDS, word_picture


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)


def _packed(llama: LlamaForCausalLM, rank: int) -> PackedLanguageModel:
    return PackedLanguageModel(llama.model.state_dict(), llama.config, rank)


def test_hand_written_gradients_are_right() -> None:
    torch.manual_seed(0)

    def double(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    weight = torch.randn(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: _RmsNorm.apply(x, weight, 1e-5), (double(3, 6),))
    assert torch.autograd.gradcheck(_SwiGlu.apply, (double(3, 8),))
    frozen = torch.randn(5, 6, dtype=torch.float64)

    def low_rank(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return _LowRankLinear.apply(x, (frozen + up @ down).detach(), down, up)  # pyright: ignore[reportReturnType]

    x, down, up = double(3, 6), double(2, 6), double(5, 2)
    got = torch.autograd.grad(low_rank(x, down, up).sin().sum(), (x, down, up))
    want = torch.autograd.grad((x @ (frozen + up @ down).t()).sin().sum(), (x, down, up))
    for mine, reference in zip(got, want, strict=True):
        assert torch.allclose(mine, reference, atol=1e-10)


@torch.no_grad()
def test_packed_questions_do_not_see_each_other(llama: LlamaForCausalLM) -> None:
    prefix, first, second = [1, 5, 6, 7], [9, 10, 11, 2], [20, 21, 22, 23, 24, 2]
    segments = [
        Segment(first, [False, False, True, True], "a"),
        Segment(second, [False, False, False, False, True, True], "b"),
    ]
    batch = collate([Row(prefix, segments, None)], length=16)
    language = _packed(llama, rank=0)
    hidden = language(
        torch.nn.functional.embedding(batch.ids, language.embedding), batch.positions, batch.mask
    )
    packed = hidden[batch.predict_at] @ language.embedding.t()
    alone = []
    for tokens in (first, second):
        logits = llama(torch.tensor([[*prefix, *tokens[:-1]]])).logits[0]
        alone.append(logits[-2:])
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)
    assert batch.predict.tolist() == [11, 2, 24, 2]
    assert batch.segment_of.tolist() == [0, 0, 1, 1]


@torch.no_grad()
def test_the_low_rank_change_is_merged_as_exported(llama: LlamaForCausalLM) -> None:
    from adapter_store.base.trained_part import merge_low_rank

    language = _packed(llama, rank=2)
    for factor in language.factors.values():
        factor.normal_(std=0.2)
    language.refresh(0, 2)
    language.refresh(1, 2)
    state = dict(llama.state_dict())
    merge_low_rank(state, language.low_rank())
    merged = LlamaForCausalLM(llama.config).eval()
    merged.load_state_dict(state)
    ids = torch.randint(0, 50, (1, 9))
    mask = torch.zeros(1, 1, 9, 9).masked_fill(~torch.ones(9, 9).tril().bool(), -1e9)
    hidden = language(torch.nn.functional.embedding(ids, language.embedding), torch.arange(9.0)[None], mask)
    assert torch.allclose(hidden @ language.embedding.t(), merged(ids).logits[0], atol=1e-4)
    assert not torch.allclose(merged(ids).logits, llama(ids).logits, atol=1e-2)


@torch.no_grad()
def test_the_exported_projector_reads_raw_features() -> None:
    torch.manual_seed(0)
    std = torch.tensor([0.1, 1.0, 9.0])
    projector = Projector(torch.tensor([4.0, 0.0, -7.0]), std, 8)
    projector.get_buffer("scale").fill_(0.2)
    plain = projector.plain_state()
    x = torch.randn(5, 3) * std
    inner = torch.nn.functional.gelu(x @ plain["linear_1.weight"].T + plain["linear_1.bias"])
    assert torch.allclose(
        inner @ plain["linear_2.weight"].T + plain["linear_2.bias"], projector(x), atol=1e-5
    )


def _pictures() -> list[Picture]:
    makers = (scene_picture, word_picture, chart_picture)
    return [maker(random.Random(f"{maker.__name__}-{seed}")) for maker in makers for seed in range(25)]


def test_pictures_are_well_formed_and_free_of_digits() -> None:
    for picture in _pictures():
        assert picture.image.mode == "RGB"
        assert len(picture.patch_words) == GRID * GRID
        assert picture.questions
        for question in picture.questions:
            assert question.answer == question.answer.lower()
            assert not any(sign.isdigit() for sign in question.text + question.answer)
    assert not any(sign.isdigit() for sign in "".join(WORDS) + LETTERS)


def test_answers_follow_from_the_scene() -> None:
    for seed in range(60):
        scene = make_scene(random.Random(f"scene-{seed}"))
        picture = scene_picture(random.Random(f"scene-{seed}"))
        colors, shapes = {t.color for t in scene.things}, {t.shape for t in scene.things}
        assert scene.things
        for question in picture.questions:
            if question.kind == "color":
                assert question.answer in colors
            if question.kind == "shape":
                assert question.answer in shapes
            if question.kind == "yes/no":
                assert question.answer in ("yes", "no")
            if question.kind == "background":
                assert question.answer == scene.background
                assert scene.background in COLORS


def test_yes_and_no_are_balanced() -> None:
    answers = [
        q.answer
        for seed in range(150)
        for q in scene_picture(random.Random(seed)).questions
        if q.kind == "yes/no"
    ]
    assert 0.42 < answers.count("yes") / len(answers) < 0.58


def test_the_probe_is_deterministic_and_varied() -> None:
    first, again, other = generic_probe(12, 5), generic_probe(12, 5), generic_probe(12, 6)
    assert [item[1:] for item in first] == [item[1:] for item in again]
    assert all(a[0].tobytes() == b[0].tobytes() for a, b in zip(first, again, strict=True))
    assert [item[1:] for item in first] != [item[1:] for item in other]
    assert len({answer for _, _, answer in first}) > 4


def test_held_out_prompts_are_not_trained_on() -> None:
    assert not set(held_out_prompts()) & set(prompts(10_000, seed=0))
