"""The processes that torchrun starts: joining them, and what a restart means."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from zotune.config import TrainConfig
from zotune.distributed.meeting import agents_store, meet
from zotune.errors import ConfigError
from zotune.run import RunPaths
from zotune.watch import Watch

if TYPE_CHECKING:
    from zotune.distributed.group import Group

# Beyond the longest evaluation or snapshot of another process. torchrun ends those that wait for one that is gone.
_TIMEOUT = timedelta(hours=1)


@contextmanager
def joined() -> Iterator[Group | None]:
    """The group of the processes that torchrun started; None without torchrun, and for a single process.

    On a machine with GPUs each process takes the one of its local rank. An error that leaves the context is told to the
    other processes. Messages are a few hundred bytes of CPU memory, so they go through gloo on every machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    import torch
    import torch.distributed

    from zotune.distributed.group import Group

    dist: Any = torch.distributed

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available() and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    store, rank, size = agents_store(_TIMEOUT)
    store, again = meet(store, rank, size, _TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    # Made now: it takes all processes, and later one of them may have left.
    both = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    group = Group(weights=dist.new_group(backend=both, timeout=_TIMEOUT))
    group.restarted = any(told != b"\0" for told in group.exchange(bytes([again or restarted()])))
    try:
        yield group
    except BaseException as error:
        ended = group.farewell(error)
        if ended is error:
            raise
        raise ended from None
    finally:
        group.close()


def check_device(config: TrainConfig) -> None:
    """Raises ConfigError when a process of torchrun has no GPU of its own and none was named."""
    import torch

    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if config.device in ("auto", "cuda") and count and local >= count:
        raise ConfigError(
            f"process {local} of this machine has no GPU: there are {count}. Remedy: --nproc-per-node {count}, or name "
            "a --device for all."
        )


def begin(config: TrainConfig, watch: Watch, group: Group | None) -> dict[str, Any]:
    """`train`; in a restart of torchrun `resume`, where the folder holds a run of exactly this config.

    Which of them, process 0 decides. A run of this config ends in the same bytes either way.
    """
    config = config.absolute()
    again = (restarted() if group is None else group.restarted) and _own(config) is not None
    if group is not None:
        check_device(config)
        again = group.share(b"\1" if again else b"\2") == b"\1"
    if again:
        from zotune.train import resume

        watch.say("torchrun started the processes again: the run goes on.")
        # The config is the user's own, so the functions that it names are too.
        return resume(
            config.output_dir,
            watch,
            config.trust_remote_code,
            trust_reward=True,
            group=group,
            allow_task_code=config.allow_task_code,
        )
    from zotune.train import train

    return train(config, watch, group=group)


def pooled(
    config: TrainConfig, watch: Watch, workers: int, gpu_workers: int, address: str | None = None
) -> dict[str, Any]:
    """`train` with workers on Ray; `resume`, where the folder holds a run of exactly this config."""
    from zotune.distributed.pool import Pool
    from zotune.distributed.ray_crew import RayCrew
    from zotune.train import resume, train

    if workers + gpu_workers < 1:
        raise ConfigError("a pool without workers. Remedy: --workers 2, or --gpu-workers.")
    config = config.absolute()
    own = _own(config)
    crew = RayCrew((own or config).to_yaml().encode(), config.trust_remote_code, workers, gpu_workers, address)
    try:
        pool = Pool(crew, workers + gpu_workers, watch.say)
        if own is not None:
            watch.say("The folder holds this run: it goes on.")
            return resume(config.output_dir, watch, config.trust_remote_code, trust_reward=True, pool=pool)
        return train(config, watch, pool=pool)
    finally:
        crew.close()


def restarted() -> bool:
    """Whether torchrun's agent here has started this process in place of one that ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _own(config: TrainConfig) -> TrainConfig | None:
    """The config of the run in the folder, where it is this one; of a run without lr or eps these are not filled in."""
    from zotune.presets import with_preset
    from zotune.resolve import config_of

    paths = RunPaths(config.output_dir)
    if not (paths.config.exists() and paths.holds_run()):
        return None
    own = config_of(paths, config.trust_remote_code, config.allow_task_code)
    return own if with_preset(own) == with_preset(config) else None
