"""Train the embedded base from the command line.

    python -m trainer_worker.pretrain --out /tmp/strata_pretrain --minutes 55

A run that is started again with the same `--out` goes on where its last checkpoint was.
"""

from __future__ import annotations

from adapter_store.base.allocator import tune_allocator
from adapter_store.base.pretrained import load_pretrained

tune_allocator()

import argparse  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
from dataclasses import fields  # noqa: E402
from pathlib import Path  # noqa: E402

_HELP = {
    "minutes": "wall-clock budget of the main phase",
    "warmup_pictures": "pictures of the projector's warm-up",
    "warmup_steps": "steps of that warm-up",
    "word_weight": "weight of the patches' words in the main loss",
    "rows": "rows per step",
    "length": "tokens per row",
    "rank": "rank of the language model's change",
    "learning_rate": "peak rate of the low-rank factors",
    "projector_rate": "peak rate of the projector",
    "chat_share": "part of the rows that is text only",
    "dialogs": "self-made dialogs to repeat",
    "shards": "threads that each work on their share of the rows",
    "seed": "seed of everything",
    "checkpoint_seconds": "time between checkpoints",
}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, assemble the untrained base and train."""
    import torch
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    from adapter_store.base.assemble import assemble
    from adapter_store.base.download import default_cache_dir, fetch, fetch_all
    from adapter_store.base.packages import BASE_PACKAGES, EASY_VQA
    from adapter_store.base.trained_part import TrainedPart
    from trainer_worker.pretrain.easy import EasyVqa
    from trainer_worker.pretrain.training import Settings, Trainer

    parser = argparse.ArgumentParser(
        prog="python -m trainer_worker.pretrain", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for state, log and trained part")
    defaults = Settings()
    for field in fields(Settings):
        default = getattr(defaults, field.name)
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=type(default), default=default,
            help=f"{_HELP[field.name]} (default {default})",
        )  # fmt: skip
    options = parser.parse_args(arguments)
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    options.out.mkdir(parents=True, exist_ok=True)
    cache = default_cache_dir()
    untrained = options.out / "untrained"
    if not (untrained / "base.json").is_file():
        assemble(untrained, TrainedPart({}, {}, None, "untrained"), fetch_all(BASE_PACKAGES, cache))
    model = load_pretrained(LlavaForConditionalGeneration, untrained, dtype=torch.float32).eval()
    model.requires_grad_(requires_grad=False)
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    easy = EasyVqa(fetch(EASY_VQA, cache), "train")
    trainer = Trainer(model, tokenizer, easy, settings, options.out)
    trainer.write_log(
        phase="start", command=shlex.join(["python", "-m", "trainer_worker.pretrain", *sys.argv[1:]])
    )
    trainer.prepare()
    torch.set_num_threads(1)
    sys.setswitchinterval(0.001)
    trainer.run()


if __name__ == "__main__":
    main()
