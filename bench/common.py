"""What the benchmark scripts share: machine and versions, the models, and paired timing."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = f"{names[0]} ({len(names)} processors)" if names else cpu
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def smollm2() -> nn.Module:
    """The demo's model."""
    from zotune.demo.assets import demo_model

    return transformers.AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32).eval()


def sentences_config(folder: Path, train_rows: int, test_rows: int, **options: Any) -> Any:
    """The demo's model and so many of its sentences, written into `folder`, with `zotune demo`'s prompt."""
    from zotune.config import TrainConfig
    from zotune.demo.assets import demo_data, demo_model

    data, files = demo_data(), {}
    for name, source, rows in (("train", data.train, train_rows), ("eval", data.test, test_rows)):
        files[name] = folder / f"{name}.jsonl"
        kept = source.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        files[name].write_text("".join(kept), encoding="utf-8")
    prompt = {"template": "{{ text }} It was", "label_words": ["terrible", "great"]}
    return TrainConfig(model=str(demo_model()), output_dir=folder / "compared", **files, **prompt, **options).absolute()


def row_arguments(doc: str | None, rows: str, steps: int, threads: int) -> argparse.Namespace:
    """The options of a benchmark of several runs, its rows, read from the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=rows)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--folder", type=Path, help="keep the rows here; a stopped run goes on")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def opt(layers: int, width: int, heads: int) -> nn.Module:
    """A random model of an OPT shape. It is cached as a folder: building it takes more memory than running it."""
    from zotune.demo.cache import cache_folder

    folder = cache_folder(None) / "bench" / f"opt-{layers}x{width}"
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        sizes = {"num_hidden_layers": layers, "hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
        built = transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, num_attention_heads=heads))
        built.save_pretrained(folder)
    return transformers.OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "smollm2-135m": smollm2,
    "opt-125m-shaped": lambda: opt(12, 768, 12),
    "opt-30m-shaped": lambda: opt(4, 384, 6),
}
# (layers, width, heads): OPT's published shapes, for a GPU.
LARGE = {"opt-1.3b-shaped": (24, 2048, 32), "opt-13b-shaped": (40, 5120, 40), "opt-30b-shaped": (48, 7168, 56)}


def model_on(name: str, device: str, dtype: str) -> nn.Module:
    """One of MODELS, or of LARGE and llama-8b-shaped with random weights that are made where they stay."""
    if name in MODELS:
        return MODELS[name]().to(device=device, dtype=getattr(torch, dtype))
    with torch.device("meta"):
        if name == "llama-8b-shaped":
            sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
            config = transformers.LlamaConfig(**sizes, num_attention_heads=32, num_key_value_heads=8)
            model: Any = transformers.LlamaForCausalLM(config)
        else:
            layers, width, heads = LARGE[name]
            sizes = {"num_hidden_layers": layers, "hidden_size": width, "word_embed_proj_dim": width}
            config = transformers.OPTConfig(**sizes, ffn_dim=4 * width, num_attention_heads=heads)
            model = transformers.OPTForCausalLM(config)
    model = model.to(getattr(torch, dtype)).to_empty(device=device).eval()
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if parameter_name.endswith("bias") else 1.0)
        for module in model.modules():
            if hasattr(module, "inv_freq"):  # rotary frequencies are made with the module, and were not kept
                made: Any = type(module)(model.config)
                for name, buffer in made.named_buffers():
                    getattr(module, name).copy_(buffer)
    return model  # type: ignore[no-any-return]


LABEL_WORDS = (10, 11)  # token ids of the two candidates


def sentence_lengths(count: int = 512) -> list[int]:
    """Sorted token counts with mean 26.6, deviation 10.7, 5 to 70: those of the demo's 2,000 first prompts."""
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 10.7 + 26.6
    return sorted(int(n) for n in drawn.round().clamp(5, 70))


def tokens(rows: int = 16, bucketed: bool = True, vocabulary: int = 40_000) -> dict[str, Tensor]:
    """A batch of sentences padded on the left: the middle length bucket, or every 32nd sentence by length."""
    pool = sentence_lengths(32 * rows)
    lengths = torch.tensor(pool[15 * rows : 16 * rows] if bucketed else pool[16::32])
    width = int(lengths.max())
    ids = torch.randint(20, vocabulary, (rows, width), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(width) >= width - lengths.unsqueeze(1)).long()
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask, "label": ids[:, -1] % 2}


def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Two label words at the last position: one sequence per example, the head at one position."""
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = model(**given, logits_to_keep=1, use_cache=False).logits[:, -1, list(LABEL_WORDS)].float()
    return nn.functional.cross_entropy(logits, batch["label"], reduction="none")


def as_published(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The same loss as the published code has it: each candidate a sequence of its own, all logits of all positions."""
    scores = []
    for word in LABEL_WORDS:
        ids = torch.cat((batch["input_ids"], torch.full_like(batch["input_ids"][:, :1], word)), 1)
        scores.append(torch.cat((ids, batch["attention_mask"], torch.ones_like(ids[:, :1])), 1))
    both = torch.cat(scores)
    ids, mask = both.split(batch["input_ids"].shape[1] + 1, dim=1)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logp = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return nn.functional.cross_entropy(logp[:, -1].view(2, -1).T, batch["label"], reduction="none")


def paired(
    baseline: Callable[[], Any], arms: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, dict[str, float]]:
    """Each arm beside the baseline, in turn: median seconds, and the median of the ratios within each turn."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for arm in (baseline, *arms.values()):
        arm()
    for _ in range(repeats):
        for name, arm in arms.items():
            base = seconds(baseline)
            seen[name].append((seconds(arm), base))
    return {
        name: {
            "seconds": median(arm for arm, _ in pairs),
            "baseline_seconds": median(base for _, base in pairs),
            "ratio": median(arm / base for arm, base in pairs),
            "ratio_min": min(arm / base for arm, base in pairs),
            "ratio_max": max(arm / base for arm, base in pairs),
        }
        for name, pairs in seen.items()
    }


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call, and of all that it left for a GPU to do."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else bool
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def write(name: str, result: dict[str, Any], text: str) -> None:
    """`results/NAME.json` and `results/NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
