"""Build a tiny LLaVA folder with random weights: the same classes and files as a real base, in a second.

The folder is what ``LlavaForConditionalGeneration.from_pretrained`` and ``AutoProcessor`` read:
a SigLIP-shaped tower (28 px, patch 14, four image tokens), a Llama text model (three layers, hidden 64), a
byte-level BPE tokenizer that can spell any text, a ChatML template, and a sentence encoder next to it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IMAGE_SIZE = 28
IMAGE_TOKENS = 4
SENTENCE_WIDTH = 32
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
_CORPUS = [
    "What is shown in the picture? Which digit is it? Answer with one word.",
    "zero one two three four five six seven eight nine bird cat dog fish horse red green blue yes no",
    "user assistant system: The answer is a picture of a thing in the scene, the color of the shape.",
]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of 384 tokens in which every string can be spelled."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_tiny_llava(
    folder: Path, seed: int = 0, head_dim: int = 16, kv_heads: int = 2, stock: bool = False
) -> Path:
    """Write a tiny random LLaVA and its sentence encoder into ``folder`` and return it.

    Args:
        folder: created if missing.
        seed: another seed gives another base (other weights, other digest).
        head_dim: width of an attention head; vLLM's kernels take 32, not 16.
        kv_heads: key-value heads, of four query heads.
        stock: an eye as in LLaVA-1.5: CLIP, its last layer but one, without the class token.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer()
    strategy = "default" if stock else "full"
    config = LlavaConfig(
        vision_config=_vision_config(stock),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=1024,
            bos_token_id=_token_id(tokenizer, "<|endoftext|>"),
            eos_token_id=_token_id(tokenizer, "<|im_end|>"),
            pad_token_id=_token_id(tokenizer, "<|endoftext|>"),
            tie_word_embeddings=False,
        ),
        image_token_index=_token_id(tokenizer, "<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2 if stock else -1,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config).eval()
        _widen(model)
        model.save_pretrained(folder)
        _save_sentence_encoder(folder / "sentence_encoder")
    LlavaProcessor(
        image_processor=_image_processor(stock),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(stock),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "base.json").write_text(json.dumps({"base_id": f"tiny-{seed}", "digest": digest}))
    return folder


def _vision_config(stock: bool) -> CLIPVisionConfig | SiglipVisionConfig:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "image_size": IMAGE_SIZE, "patch_size": 14}
    sizes |= {} if stock else {"vision_use_head": False}
    return CLIPVisionConfig(**sizes) if stock else SiglipVisionConfig(**sizes)


def _image_processor(stock: bool) -> CLIPImageProcessorPil | SiglipImageProcessorPil:
    if stock:
        square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=square)
    return SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def _token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return int(tokenizer.get_vocab()[token])


def _widen(model: LlavaForConditionalGeneration) -> None:
    """Scale the initial weights up, so that answers depend clearly on the picture and the question."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "norm" not in name:
            parameter.data.mul_(4.0)


def _save_sentence_encoder(folder: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[(name, core.token_to_id(name)) for name in ("<|im_start|>", "<|im_end|>")],
    )
    tokenizer.model_max_length = 128
    encoder = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=SENTENCE_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            pad_token_id=_token_id(tokenizer, "<|endoftext|>"),
        )
    ).eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith("word_embeddings.weight"):
            parameter.data.mul_(20.0)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
