"""The options of a training run: their names, types, defaults and limits.

`TrainConfig` is the one list: the CLI makes its flags from it, `resolve.py` reads it from YAML, `option.py` checks
values and makes the schema. torch is never imported here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, final

from zotune.data.hub import EVAL, TRAIN, hub_rows, placed
from zotune.errors import ConfigError
from zotune.option import Opt, checked, flag, schema

# Only the user's own flag may let other people's code run: never a file that may come from someone else's run.
NEVER_FROM_FILE = ("trust_remote_code", "allow_task_code")
# Where things lie, what computes them and in how much memory: a run may be moved. All other options stay what the run
# began with. rows_per_forward, eval_batch_size, graphs and scorer change the last bits of losses, nothing that they are
# losses of; tuned only what is said of lr.
PLACES = (
    "model", "sensitive", "train", "eval", "data_dir", "output_dir", "device", "device_map", "offload", "threads",
    "parallel", "check_every", "track", "reward_timeout", "trust_remote_code", "allow_task_code", "reuse_mb",
    "rows_per_forward", "eval_batch_size", "scorer", "scorer_args", "graphs", "tuned",
)  # fmt: skip
# More than any machine has cores, whose own number is no bound: a run may be moved to a smaller one. Many more end the
# process within torch, where nothing can be said.
MOST_THREADS = 1024
# Upper limits: far above what any run has, and low enough that nothing is looped over or allocated for days before
# something else refuses it.
_MOST_STEPS = 2**32 - 1  # what a journal counts
_MOST_ROWS = 2**32 - 1
_MOST_TOGETHER = 2**20  # examples of a step or of a forward, tokens of a sequence
_MOST_RANK = 2**16
_MOST_NUMBER = 1e6  # of what is no count
# Options that say how files are read, and those that say which part of a task is used.
_OF_FILES = ("train", "template", "label_words", "labels", "completion_column", "data_format")
_OF_TASKS = ("data_dir", "data_seed", "shots", "train_rows", "eval_rows", "eval_split", "calibrated")

# What recorded losses were measured with, and what the header tells a replay to do with them. A branch of a run may
# change all other options for its steps to come.
FIXED = (
    "bank_rank", "blocks", "dtype", "eps", "fold_every", "lora_alpha", "lora_rank", "lora_targets", "method",
    "method_args", "model", "prefix_tokens", "quantize", "queries", "scope", "seed", "weight_decay",
)  # fmt: skip
# What decides the inputs of the layers in a step: a method that reads them is replayed with them, so a branch of its
# runs cannot change these either. Held-out rows are among them: they have a say in whether candidates share a sequence.
INPUTS = (
    "train", "eval", "data_format", "task", "data_dir", "data_seed", "shots", "train_rows", "eval_rows", "eval_split",
    "calibrated", "text_column", "label_column", "completion_column", "template", "label_words", "labels", "objective",
    "reward", "metric", "max_new_tokens", "temperature", "stop", "batch_size", "micro_batch_size", "max_length",
)  # fmt: skip


@final
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The options of one run, checked when made. Raises ConfigError for a wrong type or value."""

    model: Annotated[str, Opt("Folder or hub id of the model.")]
    train: Annotated[
        Path | None, Opt("Training rows: jsonl, json, csv, tsv, parquet; or on the hub, ORG/NAME[/SUBSET][:SPLIT].")
    ] = None
    eval: Annotated[
        Path | None, Opt("Held-out rows, evaluated before and after the training: a file, or on the hub.")
    ] = None
    data_format: Annotated[
        Literal["text", "label", "completion", "messages", "sharegpt", "alpaca", "choices", "preference", "tokens"]
        | None,
        Opt("Shape of the rows. Default: told from their columns."),
    ] = None
    task: Annotated[str | None, Opt("Built-in task in place of files, such as sst2, or an lm-eval YAML.")] = None
    data_dir: Annotated[Path | None, Opt("Folder with the task's splits. Default: the hub.")] = None
    data_seed: Annotated[int, Opt("Seed of the task's sample of rows.", ge=0, le=2**32 - 1)] = 0
    shots: Annotated[int | None, Opt("Rows per class to train on, in place of a sample.", ge=1, le=_MOST_ROWS)] = None
    train_rows: Annotated[int | None, Opt("Rows to train on. Default: the task's, 1000.", ge=1, le=_MOST_ROWS)] = None
    eval_rows: Annotated[int | None, Opt("Rows to evaluate on. Default: the task's, 1000.", ge=1, le=_MOST_ROWS)] = None
    eval_split: Annotated[Literal["dev", "test"], Opt("Part of the task that is evaluated.")] = "test"
    calibrated: Annotated[bool, Opt("Judge the task's candidates against a prompt without content.")] = False
    text_column: Annotated[str, Opt("Column with the text.")] = "text"
    label_column: Annotated[str, Opt("Column with the label.")] = "label"
    completion_column: Annotated[str | None, Opt("Column with the completion: the loss is on it alone.")] = None
    template: Annotated[str | None, Opt("Jinja prompt over the columns. Default: the text column.")] = None
    label_words: Annotated[
        list[str] | None, Opt("One word per label, comma separated. Without: language modelling.")
    ] = None
    labels: Annotated[list[str | int] | None, Opt("Label values in the order of the words. Default: sorted.")] = None
    objective: Annotated[
        Literal["likelihood", "accuracy", "macro_f1", "f1", "exact_match"] | None,
        Opt("A score to train on. Default: the likelihood of what is right."),
    ] = None
    reward: Annotated[
        list[str] | None,
        Opt("Scores of completions: FILE.py:NAME, package.module:NAME, f1, json_valid, regex:X, ..."),
    ] = None
    reward_weights: Annotated[list[float] | None, Opt("One weight per reward. Default: 1 each.")] = None
    reward_timeout: Annotated[
        float, Opt("Seconds that a call of a reward or metric may take.", gt=0, le=_MOST_NUMBER)
    ] = 60.0
    metric: Annotated[str | None, Opt("Score of a whole batch of completions: FILE.py:NAME.")] = None
    max_new_tokens: Annotated[int, Opt("Tokens that a completion may have.", ge=1, le=_MOST_TOGETHER)] = 50
    temperature: Annotated[float, Opt("Of sampled completions; 0: greedy.", ge=0, le=_MOST_NUMBER)] = 0.0
    stop: Annotated[
        list[str] | None, Opt("Texts that end a completion. Default for f1 and exact_match: a line end.")
    ] = None
    method: Annotated[str, Opt("Method; `zotune methods` lists them.")] = "mezo"
    method_args: Annotated[dict[str, Any], Opt("Further arguments of the method.")] = field(default_factory=dict)
    lr: Annotated[
        float | None, Opt("Learning rate. Default: the preset of method and scope.", ge=0, le=_MOST_NUMBER)
    ] = None
    eps: Annotated[float | None, Opt("Size of the perturbation. Default: the preset.", gt=0, le=_MOST_NUMBER)] = None
    tuned: Annotated[str | None, Opt("The lr that `zotune tune` wrote here, and for what.")] = None
    queries: Annotated[int | None, Opt("Directions per step. Default: the method's.", ge=1, le=2**15)] = None
    weight_decay: Annotated[
        float, Opt("Decoupled weight decay; norms and biases are left out.", ge=0, le=_MOST_NUMBER)
    ] = 0.0
    scope: Annotated[
        str,
        Opt("full, norms, last:N, head, lora, prefix, prompt, scales, bank, sensitive, regex:X, ..."),
    ] = "full"
    blocks: Annotated[
        str | None, Opt("What a step trains: cycle (block by block), random:SHARE, atoms (LoRA's). Default: all.")
    ] = None
    lora_rank: Annotated[int, Opt("Rank of LoRA with --scope lora.", ge=1, le=_MOST_RANK)] = 8
    lora_alpha: Annotated[float, Opt("Alpha of LoRA.", gt=0, le=_MOST_NUMBER)] = 16.0
    lora_targets: Annotated[list[str] | None, Opt("Modules that get LoRA, comma separated, or all-linear.")] = None
    sensitive: Annotated[Path | None, Opt("Mask of --scope sensitive, made by `zotune sensitive`.")] = None
    bank_rank: Annotated[int, Opt("Most columns that --scope bank keeps per layer.", ge=1, le=_MOST_RANK)] = 64
    prefix_tokens: Annotated[int, Opt("Virtual tokens with --scope prefix or prompt.", ge=1, le=_MOST_RANK)] = 5
    steps: Annotated[int, Opt("Training steps.", ge=0, le=_MOST_STEPS)] = 1000
    batch_size: Annotated[int, Opt("Examples per step.", ge=1, le=_MOST_TOGETHER)] = 16
    micro_batch_size: Annotated[
        int | None, Opt("Examples per forward. Default: the batch size.", ge=1, le=_MOST_TOGETHER)
    ] = None
    rows_per_forward: Annotated[
        int | None,
        Opt("Evaluate a micro-batch in parts of so many rows: less memory, same steps.", ge=1, le=_MOST_TOGETHER),
    ] = None
    seed: Annotated[int, Opt("Seed of directions and data order.", ge=0, le=2**63 - 1)] = 0
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"], Opt("Type of the weights; auto: as stored.")
    ] = "float32"
    quantize: Annotated[
        Literal["int8", "int4", "nf4", "llm_int8"] | None,
        Opt("Pack the linear layers: int8, int4 (torchao), nf4, llm_int8 (bitsandbytes)."),
    ] = None
    device: Annotated[str, Opt("auto, cpu, cuda, cuda:1, ...")] = "auto"
    device_map: Annotated[
        Literal["auto", "balanced", "balanced_low_0", "sequential"] | None,
        Opt("Spread the model's layers over all devices, as transformers and accelerate do."),
    ] = None
    offload: Annotated[
        Literal["cpu", "disk"] | None,
        Opt("Where the blocks of a model wait that the device (cpu) or the memory (disk) cannot hold."),
    ] = None
    scorer: Annotated[
        Literal["torch", "vllm"], Opt("What gives the losses of the steps: the model itself, or vLLM beside it.")
    ] = "torch"
    scorer_args: Annotated[dict[str, Any], Opt("Options of vLLM: sizes and speed.")] = field(default_factory=dict)
    lr_schedule: Annotated[Literal["constant", "linear", "cosine"], Opt("Course of the learning rate.")] = "constant"
    warmup_steps: Annotated[int, Opt("Steps in which the learning rate rises from 0.", ge=0, le=_MOST_STEPS)] = 0
    lanes: Annotated[Literal["auto", "on", "off"], Opt("Evaluate both sides of a direction in one forward.")] = "auto"
    graphs: Annotated[Literal["auto", "on", "off"], Opt("Record forwards as CUDA graphs, on one GPU.")] = "auto"
    reuse_mb: Annotated[
        int, Opt("MB for activations below the scope that are kept; 0: none.", ge=0, le=_MOST_TOGETHER)
    ] = 512
    fold_every: Annotated[
        int | None,
        Opt("Steps whose low-rank updates are written together. Default: a basis' life.", ge=1, le=_MOST_STEPS),
    ] = None
    on_nonfinite: Annotated[
        Literal["stop", "skip", "halve-eps"],
        Opt("A loss that is not finite: stop, skip its step, or skip it and halve eps."),
    ] = "stop"
    max_length: Annotated[
        int, Opt("Longest sequence in tokens; longer prompts lose their beginning.", ge=1, le=_MOST_TOGETHER)
    ] = 512
    eval_every: Annotated[
        int | None, Opt("Evaluate every so many steps. Default: before and after.", ge=1, le=_MOST_STEPS)
    ] = None
    eval_batch_size: Annotated[int, Opt("Examples per forward when evaluating.", ge=1, le=_MOST_TOGETHER)] = 32
    snapshot_every: Annotated[
        int, Opt("Steps between snapshots; they only shorten a resume.", ge=1, le=_MOST_STEPS)
    ] = 500
    track: Annotated[list[str] | None, Opt("Trackers: tensorboard, trackio, wandb, mlflow, ...")] = None
    parallel: Annotated[
        Literal["data", "probes", "signs", "data+probes", "data+signs", "shard", "data+shard"] | None,
        Opt("What torchrun's processes share: micro-batches (data), probes, signs, weights (shard)."),
    ] = None
    check_every: Annotated[int, Opt("Steps between comparisons of the processes' weights.", ge=1, le=_MOST_STEPS)] = 100
    output_dir: Annotated[Path, Opt("Folder of the run.")]
    trust_remote_code: Annotated[bool, Opt("Let the model's own code run. Never taken from a file.")] = False
    allow_task_code: Annotated[bool, Opt("Let a task's YAML run functions of its folder. Never from a file.")] = False
    threads: Annotated[int | None, Opt("CPU threads. Default: torch's.", ge=1, le=MOST_THREADS)] = None

    def __post_init__(self) -> None:
        for name, value in checked(TrainConfig, vars(self)).items():
            object.__setattr__(self, name, value)
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}. Remedy: choose sizes that divide."
            )
        if self.label_words is not None and self.completion_column is not None:
            raise ConfigError(
                "label_words and completion_column cannot be used together. Remedy: give label_words for "
                "classification, completion_column for a language-model loss."
            )
        if self.parallel is not None and "signs" in self.parallel:
            if self.lanes == "on":
                raise ConfigError(
                    f"parallel {self.parallel} evaluates one side at a time, so lanes cannot be on. "
                    "Remedy: leave --lanes out."
                )
            object.__setattr__(self, "lanes", "off")
        if self.device_map is not None and self.device != "auto":
            raise ConfigError("device and device_map cannot be used together. Remedy: leave --device out.")
        if self.device_map is not None and self.offload is not None:
            raise ConfigError(
                "device_map spreads a model over devices, and offload brings it to one. Remedy: leave one of them out."
            )
        if self.sensitive is not None and not takes_mask(self.scope):
            raise ConfigError(
                f"sensitive is the mask of scope sensitive, and scope is {self.scope!r}. Remedy: --scope sensitive, or "
                "leave --sensitive out."
            )
        if self.labels is not None and self.label_words is None:
            raise ConfigError("labels needs label_words. Remedy: give one word per label in label_words.")
        self._check_task()
        self._check_objective()

    def _check_task(self) -> None:
        """A run has a file of rows or a task, and the options of the one it has."""
        if self.train is None and self.task is None:
            raise ConfigError("train is missing. Remedy: give --train FILE, or --task NAME.")
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        other = _OF_FILES if self.task is not None else _OF_TASKS
        given = [name for name in other if getattr(self, name) != defaults[name]]
        if given and self.task is not None:
            raise ConfigError(
                f"{given[0]} and task cannot be used together: a task has its own. Remedy: leave {flag(given[0])} out."
            )
        if given:
            raise ConfigError(f"{given[0]} needs a task. Remedy: give --task NAME, or leave {flag(given[0])} out.")

    @property
    def generates(self) -> bool:
        """Whether completions are generated and scored."""
        return self.reward is not None or self.metric is not None or self.objective in ("f1", "exact_match")

    def _check_objective(self) -> None:
        """One way to score, and only the options that it has."""
        named = [name for name in ("reward", "metric", "objective") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ConfigError(f"{named[0]} and {named[1]} were given. Remedy: leave one of them out.")
        if self.reward is not None and not self.reward:
            raise ConfigError("reward names no function. Remedy: --reward FILE.py:NAME.")
        if self.reward and self.reward_weights and len(self.reward_weights) != len(self.reward):
            raise ConfigError(
                f"{len(self.reward_weights)} reward_weights for {len(self.reward)} rewards. Remedy: one for each."
            )
        if "" in (self.stop or ()):
            raise ConfigError("stop holds an empty text, which ends every completion. Remedy: leave it out.")
        if self.generates and self.label_words is not None:
            raise ConfigError(
                "label_words are compared, not generated. Remedy: leave --label-words out, or --objective accuracy."
            )
        if self.generates and self.data_format not in (None, "completion"):
            raise ConfigError(
                f"rows of shape {self.data_format} have no prompt to complete. Remedy: leave --data-format out, and "
                "give --template for columns other than 'prompt'."
            )
        whole = self.metric is not None or self.objective == "macro_f1"
        if whole and self.micro_batch_size not in (None, self.batch_size):
            raise ConfigError(
                f"{'metric' if self.metric else 'objective macro_f1'} scores a whole batch, which micro_batch_size "
                f"{self.micro_batch_size} would split. Remedy: leave --micro-batch-size out."
            )

    def as_dict(self) -> dict[str, Any]:
        """The options as plain values (paths as strings), in the order of the class."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        }

    def course(self) -> dict[str, Any]:
        """The options that decide what a run computes: all but PLACES, and files of functions without their folder."""
        values = {name: value for name, value in self.as_dict().items() if name not in PLACES}
        values["reward"] = None if self.reward is None else [_unplaced(name) for name in self.reward]
        return values | {"metric": None if self.metric is None else _unplaced(self.metric)}

    def portable(self) -> dict[str, Any]:
        """The course, and files by their names alone: folders of this machine help nobody else, and may be private."""
        values = self.course()
        for name in ("model", "task", "train", "eval", "sensitive"):
            value = getattr(self, name)
            values[name] = None if value is None else str(value)
            on_hub = isinstance(value, Path) and hub_rows(value, "") is not None
            if not on_hub and (isinstance(value, Path) or (value is not None and Path(value).exists())):
                values[name] = Path(value).name
        return values

    def to_yaml(self) -> str:
        """All options as YAML that `read_file` takes again. What no file may set is left out."""
        from zotune.yaml12 import dump

        values = {name: value for name, value in self.as_dict().items() if name not in NEVER_FROM_FILE}
        return dump(values)

    def absolute(self) -> TrainConfig:
        """The same with absolute paths (also of a model that is a folder here): it works from anywhere.

        Rows on the hub get the split that they are read from.
        """
        model = str(Path(self.model).resolve()) if self.model and Path(self.model).is_dir() else self.model
        return dataclasses.replace(
            self,
            model=model,
            train=self.train and placed(self.train, TRAIN),
            eval=self.eval and placed(self.eval, EVAL),
            task=str(Path(self.task).resolve()) if self.task and Path(self.task).is_file() else self.task,
            data_dir=self.data_dir and self.data_dir.resolve(),
            sensitive=self.sensitive and self.sensitive.resolve(),
            reward=None if self.reward is None else [_placed(name) for name in self.reward],
            metric=None if self.metric is None else _placed(self.metric),
            output_dir=self.output_dir.resolve(),
        )


def takes_mask(scope: str) -> bool:
    """Whether a scope has sensitive weights among its parts."""
    return "sensitive" in [part.strip() for part in scope.split("&")]


OPTIONS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(TrainConfig))


def file_schema(arguments: Mapping[str, str]) -> dict[str, Any]:
    """The JSON schema of a config file. `arguments` are those of the methods, which may stand among the keys, and
    what is said of them.
    """
    found: dict[str, Any] = schema(TrainConfig).model_json_schema()
    for name in NEVER_FROM_FILE:
        del found["properties"][name]
    found["properties"] |= {name: {"description": said} for name, said in arguments.items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "zotune config"}


def _placed(function: str) -> str:
    """FILE.py:NAME with the whole path of the file; other names of functions unchanged."""
    path, colon, name = function.rpartition(":")
    return f"{Path(path).resolve()}:{name}" if colon and path.endswith(".py") else function


def _unplaced(function: str) -> str:
    """FILE.py:NAME without folders; other names of functions unchanged."""
    path, colon, name = function.rpartition(":")
    return f"{Path(path).name}:{name}" if colon and path.endswith(".py") else function
