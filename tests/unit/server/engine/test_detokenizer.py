"""Text comes out whole: no half characters, no part of a stop string."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from server.engine.detokenizer import TextStream, TokenTexts
from tests.tiny_llava import build_tokenizer

SPOKEN = "The bird is red: naïve café, 世界, 🦊! <b>yes</b>\n\tno"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def texts(tokenizer) -> TokenTexts:
    return TokenTexts(tokenizer)


def spell(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_pieces_join_to_the_whole(tokenizer, texts: TokenTexts) -> None:
    ids = spell(tokenizer, SPOKEN)
    stream = TextStream(texts)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == SPOKEN
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces.count("") >= 5  # the fox alone takes several tokens


def test_every_token_has_the_bytes_it_decodes_to(tokenizer, texts: TokenTexts) -> None:
    ids = spell(tokenizer, SPOKEN)
    assert b"".join(texts.bytes_of(token) for token in ids) == SPOKEN.encode()
    assert texts.text_of(tokenizer.eos_token_id) == "<|im_end|>"
    assert texts.bytes_of(10**6) == b""


def test_special_tokens_are_silent(tokenizer, texts: TokenTexts) -> None:
    stream = TextStream(texts)
    ids = [*spell(tokenizer, "yes"), tokenizer.eos_token_id, *spell(tokenizer, "no")]
    assert "".join(stream.push(token) for token in ids) == "yesno"


def test_a_cut_character_is_dropped(tokenizer, texts: TokenTexts) -> None:
    ids = spell(tokenizer, "🦊")
    assert len(ids) > 1
    stream = TextStream(texts)
    assert "".join(stream.push(token) for token in ids[:-1]) + stream.finish() == ""


def test_invalid_bytes_do_not_stop_the_text(tokenizer, texts: TokenTexts) -> None:
    broken = spell(tokenizer, "🦊")[:1]
    stream = TextStream(texts)
    assert "".join(stream.push(token) for token in [*broken, *spell(tokenizer, "ok")]) == "\ufffdok"


@pytest.mark.parametrize("stop", [("</answer>",), ("zzz", "</ans"), ("<", "never"), ("1</a",)])
def test_stop_strings_over_token_borders(tokenizer, texts: TokenTexts, stop: tuple[str, ...]) -> None:
    said = "a < b and 1</answer> and more"
    expected = said[: min(said.find(s) for s in stop if s in said)]
    stream = TextStream(texts, stop)
    shown = ""
    for token in spell(tokenizer, said):
        shown += stream.push(token)
        assert expected.startswith(shown)
        if stream.stopped:
            break
    assert stream.stopped
    assert shown + stream.finish() == expected


def test_a_stop_that_does_not_come_is_shown_at_the_end(tokenizer, texts: TokenTexts) -> None:
    stream = TextStream(texts, ("</answer>",))
    shown = "".join(stream.push(token) for token in spell(tokenizer, "value</answ"))
    assert shown == "value"
    assert not stream.stopped
    assert stream.finish() == "</answ"


def test_bytes_that_are_no_character_end_no_answer() -> None:
    """Llama's kind of tokenizer: words with a mark before them, and bytes for what it has no word for."""
    words = {"<unk>": 0, "\u2581a": 1, "b": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    core = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"))
    stream = TextStream(texts)
    fox = [3 + byte for byte in "🦊".encode()]
    assert "".join(stream.push(token) for token in [1, *fox, 2]) == "a🦊b"
    broken = TextStream(texts)
    pieces = [broken.push(token) for token in [1, 3 + 0xD2, 3 + 0xAD, 3 + 0x87, 2, 2]]
    assert pieces[0] == "a"
    assert pieces[-2:] == ["b", "b"]
