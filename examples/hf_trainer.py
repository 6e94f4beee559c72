"""transformers' own Trainer, with forward passes only: the script that one has, and two changed lines.

    python examples/hf_trainer.py --steps 240

Data, batches, the schedule of the learning rate and logging are transformers'. By default on the demo's model and
sentences, which it fetches as `zotune demo` does. Needs accelerate, as transformers' Trainer does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sentences import arguments, folder_of, model_and_files
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, TrainingArguments

import zotune
from zotune.hf import Trainer

WORDS = (" terrible", " great")
TRAIN_ROWS, TEST_ROWS = 512, 400


def encoded(tokenizer: Any, path: Path, rows: int) -> list[dict[str, list[int]]]:
    """Prompt and word as token ids; the loss is of the word alone."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines()[:rows]:
        row = json.loads(line)
        prompt = tokenizer(f"{row['text']} It was")["input_ids"]
        word = tokenizer(WORDS[int(row["label"])], add_special_tokens=False)["input_ids"][:1]
        found.append({"input_ids": prompt + word, "labels": [-100] * len(prompt) + word})
    return found


@torch.no_grad()
def accuracy(model: nn.Module, tokenizer: Any, examples: list[dict[str, list[int]]]) -> float:
    """How often the right word is the likelier of the two."""
    model.eval()
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS]
    right = 0
    for example in examples:
        logits = model(input_ids=torch.tensor([example["input_ids"][:-1]])).logits[0, -1]
        right += int(words[int(logits[words].argmax())] == example["input_ids"][-1])
    return right / len(examples)


def main() -> None:
    """Train and say the accuracy before and after."""
    options = arguments(__doc__, 240).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    name, train_file, test_file = model_and_files(options)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    train, test = encoded(tokenizer, train_file, TRAIN_ROWS), encoded(tokenizer, test_file, TEST_ROWS)
    before = accuracy(model, tokenizer, test)

    optimizer = zotune.MeZO(model, lr=4e-3, eps=3e-3, scope="norms&last:6", seed=options.seed)  # was: AdamW
    trainer = Trainer(  # was: transformers.Trainer
        model=model,
        args=TrainingArguments(
            str(folder_of(options)),
            max_steps=options.steps,
            per_device_train_batch_size=16,
            lr_scheduler_type="linear",
            logging_steps=40,
            save_strategy="no",
            report_to=[],
            seed=options.seed,
            use_cpu=True,
        ),
        train_dataset=train,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        optimizers=(optimizer, None),
    )
    trainer.train()
    result = {"steps": optimizer.steps, "accuracy_before": before, "accuracy_after": accuracy(model, tokenizer, test)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
