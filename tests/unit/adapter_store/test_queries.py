"""Queries and the sentence encoder behind them, on the tiny base's real encoder."""

from __future__ import annotations

import hashlib
import math
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from adapter_store.calibration import ImageCalibration
from adapter_store.encoder import SentenceEncoder
from adapter_store.errors import BaseModelError, StateInvalid
from adapter_store.queries import QueryEncoder, _projection, encode_queries, query_width
from adapter_store.state import RoutingSettings

TEXT = RoutingSettings(mode="text")
BOTH = RoutingSettings(mode="text+image", text_weight=0.3, image_weight=0.7)


@pytest.fixture(scope="module")
def sentences(tiny_base: Path) -> SentenceEncoder:
    return SentenceEncoder(tiny_base / "sentence_encoder")


def test_text_queries_are_unit_rows() -> None:
    queries = encode_queries(torch.randn(4, 8), None, TEXT, None)
    torch.testing.assert_close(queries.norm(dim=-1), torch.ones(4))
    assert queries.shape == (4, query_width(TEXT, 8))


@pytest.mark.parametrize("vision_width", [8, 20])
def test_the_cosine_of_both_halves_is_the_weighted_mean(vision_width: int) -> None:
    text, image, mean = torch.randn(2, 8), torch.randn(2, vision_width), torch.randn(vision_width)
    queries = encode_queries(text, image, BOTH, ImageCalibration(mean, torch.eye(len(mean))))
    assert queries.shape == (2, query_width(BOTH, 8))
    centered = image - mean
    if vision_width != 8:
        centered = centered @ _projection(vision_width, 8)
    wanted = 0.3 * F.cosine_similarity(text[0], text[1], dim=0)
    wanted += 0.7 * F.cosine_similarity(centered[0], centered[1], dim=0)
    torch.testing.assert_close(queries[0] @ queries[1], wanted)


def test_a_request_without_a_picture_has_an_empty_second_half() -> None:
    text, pooled = torch.randn(3, 8), torch.randn(8)
    queries = encode_queries(text, [None, pooled, None], BOTH, None)
    torch.testing.assert_close(queries[0, :8], F.normalize(text[0], dim=0))
    assert not queries[0, 8:].any()
    torch.testing.assert_close(queries[1:2], encode_queries(text[1:2], pooled[None], BOTH, None))
    torch.testing.assert_close(queries[[0, 2]], encode_queries(text[[0, 2]], None, BOTH, None))


def test_mismatched_inputs_say_what_is_wrong() -> None:
    with pytest.raises(StateInvalid, match="2 pictures were given for 3"):
        encode_queries(torch.randn(3, 8), torch.randn(2, 8), BOTH, None)
    with pytest.raises(StateInvalid, match="another tower"):
        encode_queries(
            torch.randn(1, 8), torch.randn(1, 8), BOTH, ImageCalibration(torch.zeros(9), torch.eye(9))
        )


def test_the_projection_is_fixed_forever() -> None:
    matrix = _projection(20, 8)
    assert hashlib.sha256(matrix.numpy().tobytes()).hexdigest().startswith("adf1fa0cc2f5e963")
    assert (matrix.abs() == 1 / torch.tensor(8.0).sqrt()).all()
    x = torch.randn(64, 1024)
    ratio = (x @ _projection(1024, 384)).norm(dim=1) / x.norm(dim=1)
    assert 0.8 < ratio.min() <= ratio.max() < 1.2


def test_encoder_gives_unit_vectors_that_do_not_depend_on_mates(sentences: SentenceEncoder) -> None:
    texts = ["What is shown?", "", "Which digit is it? " * 40, "What is shown?", "<|im_end|><image>"]
    together = sentences.encode(texts)
    assert together.shape == (5, sentences.width)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(5))
    assert torch.equal(together[0], together[3])
    assert not torch.allclose(together[0], together[2])
    fresh = torch.cat([sentences._run([text])[text][None] for text in texts])
    torch.testing.assert_close(together, fresh, atol=1e-5, rtol=1e-4)
    assert sentences.encode([]).shape == (0, sentences.width)


def test_encoder_output_may_enter_a_training_graph(sentences: SentenceEncoder) -> None:
    weight = torch.ones(sentences.width, requires_grad=True)
    (sentences.encode(["hello"]) * weight).sum().backward()
    assert weight.grad is not None


def test_encoder_forgets_the_oldest_and_runs_each_text_once(tiny_base: Path) -> None:
    encoder = SentenceEncoder(tiny_base / "sentence_encoder", cache_size=2)
    calls: list[list[str]] = []
    run = encoder._run
    encoder._run = lambda texts: calls.append(texts) or run(texts)  # type: ignore[method-assign]
    encoder.encode(["a", "b", "a"])
    encoder.encode(["a"])
    encoder.encode(["c"])
    encoder.encode(["b"])
    assert [sorted(call) for call in calls] == [["a", "b"], ["c"], ["b"]]


def test_encoder_serves_threads(sentences: SentenceEncoder) -> None:
    texts = [f"question number {index}" for index in range(12)]
    results: list[torch.Tensor | None] = [None] * 4

    def work(slot: int) -> None:
        results[slot] = sentences.encode(texts)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = results[0]
    assert first is not None
    assert all(result is not None and torch.equal(result, first) for result in results)


def test_i5_queries_of_requests_one_by_one_equal_those_of_a_batch(sentences: SentenceEncoder) -> None:
    encoder = QueryEncoder(sentences, ImageCalibration(torch.randn(10), torch.eye(10)))
    texts = ["What is it?", "Name the digit.", "What is it?"]
    pooled = [torch.randn(10), None, torch.randn(10)]
    together = encoder.encode(texts, pooled, BOTH)
    alone = torch.cat([encoder.encode([text], [row], BOTH) for text, row in zip(texts, pooled, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    assert together.shape == (3, encoder.width(BOTH))
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    assert math.isclose(float(together[0, :32].norm()) ** 2, 0.3, rel_tol=1e-4)


def test_a_folder_without_an_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no sentence encoder"):
        SentenceEncoder(tmp_path)
