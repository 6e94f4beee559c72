"""vLLM (https://docs.vllm.ai) as the server of a run's steps: stock, with a worker extension. The extra `zotune[vllm]`.

Prefix caching is off: what was cached was computed with other weights. vLLM's parts talk in pickle among themselves, in
processes of this machine; what zotune sends through them are bytes and numbers.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, final

from zotune.distributed.worker import content
from zotune.engines.server import Answer, Order, Question, Server
from zotune.engines.vllm_worker import name_of
from zotune.errors import ConfigError, RunError, UserError

# The ranks that vLLM makes room for.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# What of vLLM's own options a run may set: sizes and speed. Others would change what is computed, or run code.
OPTIONS: Mapping[str, type] = {
    "enforce_eager": bool,
    "gpu_memory_utilization": float,
    "kv_cache_memory_bytes": int,
    "max_model_len": int,
    "max_num_batched_tokens": int,
    "max_num_seqs": int,
}
# Unless the user has set them: processes that begin anew (this one has threads, which a fork would leave hanging), no
# report to vLLM's makers, and no lines of its own in the run's.
_ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@final
class Vllm(Server):
    """vLLM on this machine. options: of OPTIONS.

    Raises ConfigError for other options, and where vLLM is missing.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._options = dict(options or {})
        self._llm: Any = None
        self._processes: list[Any] = []  # of the engine, unless it runs in this one
        for name, value in self._options.items():
            if name not in OPTIONS:
                raise ConfigError(f"scorer_args has {name!r}. Remedy: one of {', '.join(OPTIONS)}.")
            if not isinstance(value, (int, float) if OPTIONS[name] is float else OPTIONS[name]):
                raise ConfigError(
                    f"scorer_args: {name} is {value!r}. Remedy: a value of type {OPTIONS[name].__name__}."
                )
        if not installed():
            raise ConfigError("--scorer vllm needs vLLM. Remedy: pip install 'zotune[vllm]'; or --scorer torch.")

    def generate(self, prompts: Sequence[str], **sampling: Any) -> list[str]:
        """Answers of the model as it is trained so far, one for each prompt.

        sampling: arguments of vLLM's `SamplingParams`. Raises RunError before a run has started the server, UserError
        for a prompt that vLLM refuses.
        """
        from vllm import SamplingParams

        settings = SamplingParams(**sampling)
        with self.serving() as slot:
            request = _request(slot)
            found = self._asked(lambda llm: llm.generate(list(prompts), settings, lora_request=request, use_tqdm=False))
        return [str(each.outputs[0].text) for each in found]

    def says(self) -> str:
        return f"vLLM {self._version}, adapters of rank {self._rank} beside the base"

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _start(self, order: Order) -> None:
        rank = next((rank for rank in _RANKS if rank >= order.rank), None)
        if rank is None:
            raise ConfigError(
                f"adapters of rank {order.rank} are needed (the bank's and the probes'), and vLLM takes {_RANKS[-1]} "
                "at most. Remedy: a smaller --bank-rank, or a smaller --rank of the method."
            )
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import LLM, __version__

        self._rank, self._version = rank, str(__version__)
        slots, trust = order.slots + 1, order.trust_remote_code  # the last slot serves
        settings: dict[str, Any] = {
            "max_model_len": order.length + order.reply,
            **self._options,
        }
        before = multiprocessing.active_children()
        try:
            self._llm = LLM(
                model=order.model,
                dtype=order.dtype,
                trust_remote_code=trust,
                load_format="safetensors",
                enable_prefix_caching=False,
                enable_lora=True,
                max_loras=slots,
                max_cpu_loras=slots,
                max_lora_rank=rank,
                lora_target_modules=sorted({name.rpartition(".")[2] for name in order.layers}),
                worker_extension_cls="zotune.engines.vllm_worker.Slots",
                disable_log_stats=True,
                **settings,
            )
        except Exception as error:  # of any library below it
            reason = _first_line(error)
            raise RunError(
                f"vLLM did not start: {reason}. Remedy: VLLM_LOGGING_LEVEL=INFO says more; or --scorer torch."
            ) from error
        self._processes = [process for process in multiprocessing.active_children() if process not in before]
        self._call("zotune_start", order.header, order.bank_rank, slots)

    def _follow(self, records: bytes) -> None:
        self._call("zotune_follow", records)

    def _place(self, step: int | None, adapters: Sequence[tuple[int, int, float]]) -> None:
        self._call("zotune_place", step, list(adapters))

    def _answer(self, questions: Sequence[Question], slots: Sequence[int]) -> list[Answer]:
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": list(each.read)} for each in questions]
        settings = [
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                prompt_logprobs=0 if each.inner else None,
                logprob_token_ids=list(each.follow),
                detokenize=False,
            )
            for each in questions
        ]
        requests = [_request(slot) for slot in slots]
        found = self._asked(lambda llm: llm.generate(prompts, settings, lora_request=requests, use_tqdm=False))
        return [_read(output, question) for output, question in zip(found, questions, strict=True)]

    def _call(self, name: str, *arguments: Any) -> None:
        for answer in self._asked(lambda llm: llm.collective_rpc(name, args=arguments)):
            content(bytes(answer), "a worker of vLLM")

    def _asked(self, call: Callable[[Any], Any]) -> Any:
        """What a call gives; what vLLM refuses or dies of, in our words.

        vLLM waits for ever for an engine that was killed. So the call waits in a thread, and this one looks after it.
        """
        from vllm.exceptions import VLLMClientError

        answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def wait() -> None:
            try:
                answers.put((call(self._llm), None))
            except Exception as error:  # raised below, in the thread that asked
                answers.put((None, error))

        threading.Thread(target=wait, daemon=True).start()
        while True:
            try:
                found, error = answers.get(timeout=0.2)  # in small parts, so that signals get through
                break
            except queue.Empty:
                if not all(process.is_alive() for process in self._processes):
                    found, error = None, RunError("its process is gone (out of memory?)")
                    break
        if isinstance(error, (ValueError, VLLMClientError)):
            raise UserError(
                f"vLLM refuses the request: {_first_line(error)}. Remedy: a shorter one, or a larger --scorer-arg "
                "max_model_len=N."
            ) from error
        if error is not None:
            raise RunError(
                f"vLLM stopped: {_first_line(error)}. Remedy: `zotune resume RUN` goes on, with --scorer torch if need "
                "be."
            ) from error
        return found


def installed() -> bool:
    """Whether vLLM is here. A folder of that name, a run's say, is none: Python takes it for a package without code."""
    spec = find_spec("vllm")
    return spec is not None and spec.origin is not None


def _read(output: Any, question: Question) -> Answer:
    places = range(1, len(question.read)) if question.inner else ()
    behind = output.outputs[0].logprobs[0]
    return Answer(
        [output.prompt_logprobs[place][question.read[place]].logprob for place in places],
        {token: behind[token].logprob for token in question.follow},
    )


def _first_line(error: Exception) -> str:
    """The line that says something: pydantic's first one only counts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "validation error" not in line]
    return (lines or [type(error).__name__])[0].rstrip(".")


def _request(slot: int) -> Any:
    """A request of vLLM for the adapter of a slot, which the workers know: its path is never read."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(name_of(slot), slot, name_of(slot))
