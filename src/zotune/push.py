"""`zotune push`: a run on the hub, with a model card and the journal, so that anyone can rebuild its weights.

The repository holds the exported weights (or none of them: a journal is enough for who has the base model), README.md,
and the run in a folder `zotune/` of its own, without the paths of this machine.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from zotune.config import TrainConfig
from zotune.data.hub import TRAIN, hub_rows
from zotune.disk import written
from zotune.errors import ConfigError, UserError
from zotune.export import export, publish
from zotune.history.copy import copy
from zotune.history.steps import count_steps, hash_at
from zotune.methods import METHODS
from zotune.model_folder import refuse_filled
from zotune.resolve import config_of
from zotune.run import RunPaths
from zotune.watch import Watch
from zotune.yaml12 import dump

Content = Literal["merge", "adapter", "delta", "journal"]
FOLDER = "zotune"


def push(
    run: str | Path,
    repo: str,
    watch: Watch,
    content: Content | None = None,
    private: bool = False,
    to: Path | None = None,
    trust_remote_code: bool = False,
    api: Any = None,
) -> dict[str, Any]:
    """Upload a run to the repository `repo` ("USER/NAME"), which is made where it is not there.

    content: a form of `export`, None for its default, or "journal" for no weights. With `to` the folder is written
    there and nothing is uploaded. api: in place of huggingface_hub's HfApi, which takes the token of `hf auth login`.
    Returns repo, content, files, bytes and url. Raises ConfigError for a name that is none, UserError when the hub
    refuses or cannot be reached, and what `export` raises.
    """
    _check_name(repo)
    paths = RunPaths(run).check()
    config = config_of(paths, trust_remote_code)
    if to is not None:
        refuse_filled(to, force=False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "repository"
        with written(folder, "set TMPDIR to a folder that can be written"):
            found = _fill(paths, folder, config, repo, content, watch, trust_remote_code)
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if to is not None:
            found["bytes"] = publish(to, lambda aside: _copied(folder, aside))
            return found | {"files": files, "to": str(to), "url": None}
        url = _upload(folder, repo, private, api)
        found["bytes"] = sum((folder / name).stat().st_size for name in files)
    return found | {"files": files, "url": url}


def _fill(
    paths: RunPaths,
    folder: Path,
    config: TrainConfig,
    repo: str,
    content: Content | None,
    watch: Watch,
    trust_remote_code: bool,
) -> dict[str, Any]:
    if content == "journal":
        folder.mkdir()
    else:
        content = export(paths.folder, folder, watch, content, trust_remote_code=trust_remote_code)["form"]
    copy(paths.folder, folder / FOLDER, snapshots=False)
    own = RunPaths(folder / FOLDER)
    own.timing.unlink(missing_ok=True)
    own.config.write_text(dump(config.portable() | {"output_dir": FOLDER}), encoding="utf-8")
    if config.sensitive is not None:
        shutil.copyfile(config.sensitive, folder / FOLDER / config.sensitive.name)
    (folder / "README.md").write_text(card(paths, config, repo, content), encoding="utf-8")
    return {"repo": repo, "content": content}


def card(paths: RunPaths, config: TrainConfig, repo: str, content: str) -> str:
    """The model card: what was trained on what, how well it did, and how to rebuild it."""
    from huggingface_hub import ModelCardData

    header, records, _ = paths.recorded()
    steps, unknown = count_steps(records), "not recorded"
    local = Path(config.model).is_dir()
    on_hub = None if config.train is None else hub_rows(config.train, TRAIN)
    libraries = {"merge": "transformers", "adapter": "peft"}
    data = ModelCardData(
        base_model=None if local else config.model,
        library_name=libraries.get(content),
        datasets=None if on_hub is None else [on_hub.name],
        tags=["zotune", "zeroth-order", config.method],
    )
    alone = METHODS[config.method].replayable
    base = f"`{Path(config.model).name}`" if local else f"[{config.model}](https://huggingface.co/{config.model})"
    lines = [
        "---", data.to_yaml(), "---", "", f"# {repo.rpartition('/')[2]}", "",
        f"{base}, trained with forward passes only by [zotune](https://pypi.org/project/zotune): {steps} steps of "
        f"`{config.method}`, lr {header.get('config', {}).get('lr') or 'of the method'}, scope `{config.scope}`, seed "
        f"{config.seed}, {config.dtype}.", "",
        *_results(paths), "## Rebuild it", "",
        f"The folder `{FOLDER}/` is the run: its config, its metrics and its journal "
        f"({paths.journal.stat().st_size:,} bytes), which holds the losses of every step. From it and the base model "
        f"the weights come out again to the bit, {'without data' if alone else 'with the rows it was trained on'}:", "",
        "```sh", f"hf download {repo} --include '{FOLDER}/*' --local-dir {repo.rpartition('/')[2]}",
        f"zotune replay {repo.rpartition('/')[2]}/{FOLDER} --verify --to weights", "```", "",
        *([f"`model:` in `{FOLDER}/config.yaml` must name the folder of the base model.", ""] if local else []),
        *([] if alone else [f"They must lie where `{FOLDER}/config.yaml` says.", ""]),
        *(["`sensitive:` there must name the mask, which lies beside it.", ""] if config.sensitive else []),
        f"- hash of the base weights: `{header.get('base_sha256', unknown)}`",
        f"- hash of the trained weights: `{hash_at(records, steps) or 'not recorded: the run is not finished'}`",
        f"- zotune {header.get('zotune', unknown)}, torch {header.get('torch', unknown)}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _results(paths: RunPaths) -> list[str]:
    """The first and the last evaluation as a table; nothing without one."""
    rows = [row for row in paths.logged() if row.get("eval")]
    if not rows:
        return []
    before, after = rows[0]["eval"], rows[-1]["eval"]
    names = [name for name in before | after if name not in ("examples", "low", "high")]
    lines = [f"| on {after['examples']} held-out rows | before | after {rows[-1]['step']} steps |", "|---|---|---|"]
    for name in names:
        values = [found.get(name) for found in (before, after)]
        if values != [None, None]:
            lines.append(f"| {name} | {' | '.join(map(_said, values))} |")
    ends = [[_said(found.get(end)) for end in ("low", "high")] for found in (before, after)]
    if "-" not in ends[0] + ends[1]:
        lines.append(f"| 95 % interval | {' to '.join(ends[0])} | {' to '.join(ends[1])} |")
    return [*lines, ""]


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _copied(folder: Path, to: Path) -> None:
    for path in sorted(folder.rglob("*")):
        place = to / path.relative_to(folder)
        place.mkdir() if path.is_dir() else shutil.copyfile(path, place)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise ConfigError(f"{repo!r} is no name of a repository. Remedy: USER/NAME.") from None


def _upload(folder: Path, repo: str, private: bool, api: Any) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    transport: Any = HfHubHTTPError.__bases__[0]  # of the library that it uses, which differs between its versions
    hub = HfApi() if api is None else api
    try:
        made = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=str(folder), commit_message="zotune push")
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, transport, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{repo} could not be pushed: {reason}. The run is as it was. Remedy: `hf auth login`, a look at the "
            "network, or --to DIR to write the folder here."
        ) from error
    return str(made)
