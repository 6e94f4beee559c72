"""What the benchmark scripts share: machine and versions, the models, and paired timing."""

from __future__ import annotations

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
    """The demo's model, float32."""
    from zotune.demo.assets import demo_model

    return transformers.AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32).eval()


def opt_125m() -> nn.Module:
    """A random model of OPT-125M's shape, float32."""
    torch.manual_seed(0)
    return transformers.OPTForCausalLM(transformers.OPTConfig()).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {"smollm2-135m": smollm2, "opt-125m-shaped": opt_125m}


def tokens(rows: int = 16, length: int = 32) -> dict[str, Tensor]:
    """A batch of random token ids below 40,000."""
    ids = torch.randint(3, 40_000, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "label": ids[:, 0] % 2}


def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Two label words at the last position: one sequence per example, the head at one position."""
    logits = model(input_ids=batch["input_ids"], logits_to_keep=1, use_cache=False).logits[:, -1, 10:12].float()
    return nn.functional.cross_entropy(logits, batch["label"], reduction="none")


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
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def write(name: str, result: dict[str, Any], text: str) -> None:
    """`results/NAME.json` and `results/NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
