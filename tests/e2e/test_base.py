"""Run the real embedded base: plain transformers loads it, it sees, it talks, and its report holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from adapter_store.base.assemble import IMAGE_TOKENS, base_digest, ensure_embedded_base
from adapter_store.base.download import default_cache_dir, fetch
from adapter_store.base.load import Base, load_base
from adapter_store.base.packages import EASY_VQA
from adapter_store.base.trained_part import load_trained_part, shipped_weights_dir
from adapter_store.encoder import SentenceEncoder
from trainer_worker.pretrain.easy import EasyVqa
from trainer_worker.pretrain.packing import Packer
from trainer_worker.pretrain.picture import Question
from trainer_worker.pretrain.scenes import generic_probe
from trainer_worker.pretrain.scoring import (
    BARS,
    LENGTH,
    held_out_rows,
    question_scores,
    score_one_by_one,
)
from trainer_worker.pretrain.visual import to_pixels

pytestmark = pytest.mark.base


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(ensure_embedded_base(progress=False))


def test_plain_transformers_loads_the_folder_and_agrees(base: Base) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(base.path).eval()
    processor = AutoProcessor.from_pretrained(base.path)
    image, question, _ = generic_probe(1, seed=77)[0]
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    assert text == f"<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == IMAGE_TOKENS
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, base.model(**inputs).logits)


def test_the_base_is_frozen_and_knows_who_it_is(base: Base) -> None:
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    part = load_trained_part(shipped_weights_dir())
    assert base.digest == base_digest(part)
    assert base.calibration is not None
    assert base.calibration.whitening.shape == (384, 384)
    assert sum(file.stat().st_size for file in shipped_weights_dir().iterdir()) < 12 * 2**20


def test_pixels_of_training_are_pixels_of_serving(base: Base) -> None:
    image = generic_probe(1, seed=78)[0][0]
    served = base.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    assert torch.allclose(served[0], to_pixels(image), atol=0.02)


def test_packed_scoring_is_greedy_decoding(base: Base) -> None:
    probes = generic_probe(24, seed=79)
    one_by_one = score_one_by_one(base, probes)
    packer = Packer(base.tokenizer, LENGTH)
    assert packer.image_prefix.count(base.image_token_id) == IMAGE_TOKENS
    rows = []
    for image, question, answer in probes:
        rows += packer.picture_rows(to_pixels(image), [packer.segment([Question("probe", question, answer)])])
    packed = question_scores(base, rows)["probe"]
    assert packed["questions"] == len(probes)
    assert abs(packed["accuracy"] * len(probes) - sum(one_by_one)) <= 1
    assert sum(one_by_one) / len(probes) > 0.75


def test_the_bars_of_the_report_hold_on_fresh_held_out_questions(base: Base) -> None:
    report = json.loads((shipped_weights_dir() / "report.json").read_text(encoding="utf-8"))
    easy = EasyVqa(fetch(EASY_VQA, default_cache_dir()), "test")
    rows = held_out_rows(Packer(base.tokenizer, LENGTH), easy, pictures=20)
    scores = question_scores(base, rows)
    assert scores["all"]["questions"] >= 150
    for name in BARS:
        reported, found = report["questions"][name], scores[name]
        assert found["accuracy"] > reported["accuracy"] - 0.08
        assert found["accuracy"] > found["question_only"] + 0.15


def test_it_still_talks(base: Base) -> None:
    text = base.processor.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    inputs = base.processor(text=[text], return_tensors="pt")
    output = base.model.generate(**inputs, max_new_tokens=24)
    assert "Paris" in base.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


def test_the_sentence_encoder_is_plain(base: Base) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base.sentence_encoder)
    encoder = AutoModel.from_pretrained(base.sentence_encoder).eval()
    texts = ["What color is the shape?", "Which color does it have?", "Translate this into French."]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    query = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert query.shape == (3, 384)
    assert float(query[0] @ query[1]) > float(query[0] @ query[2]) + 0.2


def test_a_llava_without_our_files_gets_the_pinned_encoder(base: Base, tmp_path: Path) -> None:
    for path in base.path.iterdir():
        if path.name not in ("base.json", "calibration.safetensors", "sentence_encoder"):
            (tmp_path / path.name).symlink_to(path)
    foreign = load_base(tmp_path)
    assert foreign.base_id == tmp_path.name
    assert foreign.digest != base.digest
    assert foreign.calibration is None
    texts = ["Which animal is this?"]
    found, expected = (SentenceEncoder(b.sentence_encoder).encode(texts) for b in (foreign, base))
    assert torch.equal(found, expected)
