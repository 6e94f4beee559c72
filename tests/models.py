"""Tiny random models of many families, a batch and a per-example loss for each, and methods with test arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from zotune.direction import Target
from zotune.estimate import Point
from zotune.methods import METHODS, accepts
from zotune.noise import Key
from zotune.optimizer import ZerothOrder
from zotune.records import StepRecord
from zotune.stacked import spread_out

VOCAB = 40
LENGTH = 6
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
HEADS = {"num_key_value_heads": 1, "head_dim": 8}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "decoder_sparse_step": 1}

# Vision parts: pictures of 8 x 8 in 4 patches, and token IMAGE where one is read.
IMAGE = VOCAB - 1
VISION = {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4, "projection_dim": 16} | {
    key: SIZES[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
}
PATCHES = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}

# The families that must ride in lanes, and the one that must say why it cannot.
LANE_FAMILIES = ("llama", "qwen3", "gemma3", "opt", "gpt2", "bert", "roberta", "t5")
FAMILIES = (*LANE_FAMILIES, "qwen3_moe")
# Families that tests/test_families.py alone takes through their paces.
MORE_FAMILIES = ("mistral", "phi", "gpt_neox", "mixtral", "deberta", "llava", "qwen2_vl", "cnn")

# Arguments that reach every branch of a method on a tiny model; a method without a row runs with its defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "agzo": {"rank": 2, "queries": 2},
    "aimzo": {"width": 6, "head": 2, "active": 4, "probes": 2},
    "curvzo": {"clip": None},
    "lozo": {"rank": 3, "interval": 3},
    "sparse_mezo": {"sparsity": 0.6},
    "lozo_m": {"rank": 3, "interval": 3},
    # At the paper's 1e-8 nothing would be learned in a test.
    "hizoo": {"smoothing": 1e-3},
    "conmezo": {"warmup": 4},
    "loren": {"queries": 3},
    "subzero": {"rank": 3, "interval": 3},
    # Its z shrinks with rank / rows: less rank would put the smallest test radii below rounding. The default
    # vector_lr moves vectors by less than a test can compare.
    "zo_muon": {"rank": 8, "interval": 3, "queries": 2, "vector_lr": 1e-3},
    "fzoo": {"population": 3},
    "es": {"population": 3},
    "eggroll": {"population": 4, "rank": 2},
}
# The fewest directions of a step, where one is not enough: leave-one-out compares them with each other.
FEWEST = {"loren": 2}


# The shapes of direction that there are: dense, masked, low rank, per example, from the layers' inputs. General tests
# run for these; for the other methods they are slow tests. The contract runs for every method, always.
KINDS = ("mezo", "sparse_mezo", "lozo", "grzo", "agzo")
METHOD_ROWS = [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in METHODS]
# The families that every method meets in the contract; the others are for the kinds above, and slow tests.
FEW_FAMILIES = ("llama", "gpt2", "t5", "qwen3_moe")
CONTRACT_ROWS = [
    pytest.param(name, family, marks=() if name in KINDS or family in FEW_FAMILIES else pytest.mark.slow)
    for name in METHODS
    for family in FAMILIES
]

# Methods whose update is not `-lr * sum of coef z` over the step's own probes: by a factor common to all tensors, or in
# another way, which is what to expect instead of that sum. Their own test files hold them against a naive dense
# reference of the paper's formula.
RESCALED: set[str] = {
    "meazo",  # divided by a running mean that the rule keeps, the same for all tensors with one group
}


class Applied(Protocol):
    """From a step's `sum of coef z` of one tensor, in its shape, what `-lr` is to be multiplied with."""

    def __call__(self, optimizer: ZerothOrder, target: Target, key: Key, sum_: Tensor) -> Tensor: ...


class MovingAverage:
    """LoZO-M: `M <- beta M + (1 - beta) sum`; a new basis V takes M along as `M V V' / columns`. Keeps every M."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[int, Tensor]] = {}

    def __call__(self, optimizer: ZerothOrder, target: Target, key: Key, sum_: Tensor) -> Tensor:
        beta, window = optimizer.arguments["beta"], key.step // optimizer.arguments["interval"]
        last, m = self.kept.get(target.name, (window, torch.zeros_like(sum_)))
        factors = optimizer.direction.factors(target, key)
        if last != window and factors is not None:
            m = (m.view(target.matrix_shape) @ factors.v @ factors.v.T / target.matrix_shape[1]).view_as(m)
        self.kept[target.name] = window, beta * m + (1 - beta) * sum_
        return self.kept[target.name][1]


class MatrixSign:
    """ZO-Muon: `P NS(P' sum)` of a matrix, with the polynomial on its singular values; `vector_lr` for vectors."""

    def __call__(self, optimizer: ZerothOrder, target: Target, key: Key, sum_: Tensor) -> Tensor:
        factors = optimizer.direction.factors(target, key)
        if factors is None:
            return sum_ * (optimizer.arguments["vector_lr"] / optimizer.param_groups[0]["lr"])
        p = factors.u
        u, sigma, v = torch.linalg.svd(p.T @ sum_.view(target.matrix_shape), full_matrices=False)
        sigma = sigma / (sigma.norm() + 1e-7)
        for _ in range(5):
            sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
        return (p @ u @ torch.diag(sigma) @ v).view_as(sum_)


OTHERWISE: dict[str, Callable[[], Applied]] = {"lozo_m": MovingAverage, "zo_muon": MatrixSign}
# Methods whose steps are lr / (2 eps) long whatever the slope: long runs of the tests take a smaller lr.
LONG_STEPS = {"grzo"}
# Methods whose direction keeps a number for every weight, as their papers do.
FOR_EVERY_WEIGHT = {"hizoo", "conmezo"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For modules that take it up: tensors this small only lose by a second thread, most on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Cnn(nn.Module):
    """A plain module: two convolutions with the usual norms, and a linear layer. `labels` are ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(8, 10)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.body(pixel_values)).unsqueeze(1))


def _build(family: str) -> nn.Module:
    if family == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **HEADS))
    if family == "qwen3":
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, **HEADS, tie_word_embeddings=True))
    if family == "gemma3":
        return hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SIZES, **HEADS, sliding_window=4))
    if family == "qwen3_moe":
        return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, experts_implementation="eager"))
    if family == "opt":
        sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
        return hf.OPTForCausalLM(hf.OPTConfig(**sizes, ffn_dim=24, word_embed_proj_dim=16))
    if family == "gpt2":
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32, **ENDS)
        )
    if family == "mistral":
        return hf.MistralForCausalLM(hf.MistralConfig(**SIZES, **HEADS, sliding_window=4))
    if family == "phi":
        return hf.PhiForCausalLM(hf.PhiConfig(**SIZES, **ENDS, partial_rotary_factor=0.5))
    if family == "gpt_neox":
        return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES, **ENDS))
    if family == "mixtral":
        return hf.MixtralForCausalLM(hf.MixtralConfig(**SIZES, **HEADS, num_local_experts=4, num_experts_per_tok=2))
    if family == "deberta":
        relative = {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"]}
        return hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**SIZES, **relative, norm_rel_ebd="layer_norm"))
    if family == "llava":
        text = {"model_type": "llama", **SIZES, **HEADS}
        return hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(vision_config=VISION, text_config=text, image_token_index=IMAGE)
        )
    if family == "qwen2_vl":
        text = {**SIZES, "num_key_value_heads": 1, **ENDS, "rope_parameters": ROPE}
        tokens = {"image_token_id": IMAGE, "vision_start_token_id": 37, "vision_end_token_id": 36}
        return hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(vision_config=PATCHES, text_config=text, **tokens))
    if family == "cnn":
        return Cnn()
    if family == "bert":
        return hf.BertForMaskedLM(hf.BertConfig(**SIZES))
    if family == "roberta":
        return hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES, pad_token_id=1))
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )


def seeded(build: Callable[[], nn.Module], seed: int = 1) -> Any:
    """A module with the library's own initial weights; the global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def tiny(family: str, dtype: torch.dtype = torch.float32, seed: int = 7) -> nn.Module:
    """A model of two layers with seeded weights, in eval mode. The global random state is left as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        model = _build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm weights and biases too: zeros and ones would hide a lane that used the wrong one.
            spread = 0.3 if parameter.ndim > 1 else 0.1
            base = parameter if parameter.ndim < 2 else torch.zeros_like(parameter)
            parameter.copy_(base + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval().to(dtype)


def batch_for(family: str, rows: int = 3, seed: int = 5) -> dict[str, Tensor]:
    """Token ids and labels of `rows` examples; a mask where the family's objective passes one."""
    generator = torch.Generator().manual_seed(seed)
    batch = {"input_ids": torch.randint(3, VOCAB, (rows, LENGTH), generator=generator)}
    batch["labels"] = torch.randint(3, VOCAB, (rows, LENGTH), generator=generator)
    if family in ("llava", "qwen2_vl", "cnn"):
        return _with_pictures(family, batch, generator)
    if family in ("bert", "roberta", "t5", "deberta"):
        mask = torch.ones(rows, LENGTH, dtype=torch.int64)
        mask[0, -2:] = 0
        batch["attention_mask"] = mask
    return batch


def _with_pictures(family: str, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """A picture for every example; the language models read it before the text."""
    rows = len(batch["input_ids"])
    pixels = torch.randn(rows, 3, 8, 8, generator=generator)
    if family == "cnn":
        return {"pixel_values": pixels, "labels": batch["labels"][:, :1] % 10}
    seen = torch.tensor([IMAGE] * 4 if family == "llava" else [37, IMAGE, 36]).expand(rows, -1)
    ids = torch.cat([seen, batch["input_ids"] % 30], 1)
    labels = torch.cat([seen, batch["labels"]], 1)
    if family == "llava":
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels}
    # Here the patches of all pictures lie in one list: dim 0 is not the examples.
    patches = torch.randn(rows * 4, 3 * 2 * 4 * 4, generator=generator)
    grid = torch.tensor([[1, 2, 2]] * rows)
    kinds = (ids == IMAGE).int()
    more = {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds}
    return {"input_ids": ids, "labels": labels, **more}


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross entropy of each example, (B,), whatever the family: the model's logits against the labels."""
    logits = model(**batch).logits
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide.transpose(1, 2), batch["labels"], reduction="none").mean(1)


def train(name: str, model: nn.Module, lr: float = 1e-3, eps: float = 1e-2, **options: Any) -> ZerothOrder:
    """The optimizer of a row of METHODS on `model`, with the arguments for tests; `queries` where it takes them."""
    if "queries" not in accepts(name):
        options.pop("queries", None)
    elif "queries" in options:
        options["queries"] = max(options["queries"], FEWEST.get(name, 1))
    return METHODS[name].build(model, lr=lr, eps=eps, **{**ARGUMENTS.get(name, {}), **options})


def takes_closures(name: str) -> bool:
    """Whether a method can do with one number for a whole batch."""
    return not train(name, nn.Linear(1, 1)).estimator.per_example


def forwards_of(optimizer: ZerothOrder, step: int = 0) -> int:
    """The forwards of a step, as the method's row declares them."""
    declared = METHODS[optimizer.method].forwards_per_step
    return int(eval(declared, {**optimizer.arguments, "step": step}))  # noqa: S307 - our own table


def record_of(optimizer: ZerothOrder, step: int, lr: float, rows: int = 2) -> StepRecord:
    """A step's record with losses that are all different, one for each point, or for each point and example."""
    count = len(optimizer.estimator.points(optimizer.seed, step)) * (rows if optimizer.estimator.per_example else 1)
    return StepRecord(step, (lr,) * len(optimizer.param_groups), tuple(1.0 + (i * 7 % 11) / 8 for i in range(count)))


def given(optimizer: ZerothOrder, lr: float) -> None:
    """The next step of a method on `Weights` with the losses of `record_of`: none is evaluated."""
    if optimizer.direction.reads_inputs:
        optimizer.look(of(lambda theta: theta.float().sum()), {})
    optimizer.replay(record_of(optimizer, optimizer.steps, lr))


def own_points(points: list[Point], rows: int) -> list[list[Point]]:
    """For each point, the point at which each of `rows` examples is evaluated."""
    return [spread_out(point, rows) if point.each else [point] * rows for point in points]


def displaced(optimizer: ZerothOrder, point: Point) -> nn.Module:
    """An explicit copy of the model at `point`: every parameter in scope is written as `W + scale * z`."""
    model = copy.deepcopy(optimizer.model)
    named = dict(model.named_parameters())
    for target in optimizer.perturber.targets():
        z = optimizer.direction.block(target, point.key, 0, target.data.numel()).view(target.data.shape)
        wide = torch.float64 if target.data.dtype == torch.float64 else torch.float32
        scale = torch.tensor(point.scale, dtype=wide)
        named[target.name].data.copy_(target.data.to(wide) + scale * z.to(wide))
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit, so that -0.0 differs from 0.0 and NaN equals itself."""
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape
        and one[name].dtype == other[name].dtype
        and torch.equal(_bits(one[name]), _bits(other[name]))
        for name in one
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def normals(shape: tuple[int, ...] | int, seed: int, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> Tensor:
    """Seeded normal numbers that do not touch the global generator."""
    sizes = (shape,) if isinstance(shape, int) else shape
    return (torch.randn(sizes, generator=torch.Generator().manual_seed(seed)) * spread).to(dtype)


class Weights(nn.Module):
    """Bare tensors as a model: `forward()` gives them flattened and joined, so a loss can be any function of theta.

    Matrices at rest are multiplied with three rows of their own, for directions that follow the layers' inputs: x @ W'
    of those that are not taller than wide, x @ W of the others.
    """

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=True))

    def forward(self) -> Tensor:
        for name, weight in self._parameters.items():
            if type(weight) is nn.Parameter and weight.dim() == 2:
                x = normals((3, max(weight.shape)), len(name), weight.dtype).to(weight.device)
                _ = x @ weight if weight.shape[0] > weight.shape[1] else functional.linear(x, weight)
        return torch.cat([getattr(self, name).reshape(-1) for name in self._parameters])


def of(function: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """An objective on `Weights`: `function` of the joined parameters, the same for every example of a batch."""
    return lambda model, batch: function(model()).expand(len(batch["row"])) if batch else function(model())


# Two examples for objectives that do not look at them: methods that need the losses of examples get some.
ROWS = {"row": torch.arange(2)}


def flat(model: nn.Module) -> Tensor:
    """All parameters, flattened and joined, as a copy."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def target_of(optimizer: ZerothOrder, name: str) -> Target:
    """The target of one parameter."""
    return next(target for target in optimizer.perturber.targets() if target.name == name)


def squares(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean square of each example's outputs, (B,)."""
    output: Tensor = model(batch["x"])
    return output.flatten(1).square().mean(1)


def inputs(rows: int, *shape: int, seed: int = 3) -> dict[str, Tensor]:
    """A batch of so many examples of one shape."""
    return {"x": normals((rows, *shape), seed)}


def against_copies(optimizer: Any, objective: Any, batch: Any, tolerance: float = 1e-5) -> None:
    """The losses of the points of step 0 equal those of explicitly perturbed copies."""
    points = optimizer.estimator.points(0, 0)
    found = optimizer.evaluator.losses(objective, batch, points)
    with torch.inference_mode():
        for row, own in enumerate(own_points(points, found.shape[1])):
            losses = {p: objective(displaced(optimizer, p), batch).double().reshape(-1) for p in dict.fromkeys(own)}
            copies = torch.stack([losses[p][example] for example, p in enumerate(own)])
            assert float((found[row] - copies).abs().max()) <= tolerance


class Called(TorchDispatchMode):
    """The names of the operations that reach the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
