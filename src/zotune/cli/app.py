"""The table of subcommands and the entry point. Nothing here imports torch or transformers for help."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from zotune.cli import (
    branch,
    cat,
    checkout,
    compare,
    cp,
    data,
    demo,
    diff,
    doctor,
    evaluate,
    export,
    init,
    log,
    ls,
    methods,
    plan,
    pool,
    push,
    replay,
    report,
    resume,
    schema,
    sensitive,
    train,
    tune,
    undo,
    verify,
)
from zotune.cli.frame import fail
from zotune.option import flag

# Rich is switched off for help and errors: importing it takes longer than everything else that help needs.
app = typer.Typer(
    name="zotune",
    help="Fine-tune language models with forward passes only, in the memory of inference.",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.command)
app.command("data")(data.command)
app.command("train")(train.command)
app.command("resume")(resume.command)
app.command("eval")(evaluate.command)
app.command("replay")(replay.command)
app.command("log")(log.command)
app.command("checkout")(checkout.command)
app.command("undo")(undo.command)
app.command("branch")(branch.command)
app.command("verify")(verify.command)
app.command("diff")(diff.command)
app.command("plan")(plan.command)
app.command("pool")(pool.command)
app.command("sensitive")(sensitive.command)
app.command("tune")(tune.command)
app.command("compare")(compare.command)
app.command("report")(report.command)
app.command("export")(export.command)
app.command("push")(push.command)
app.command("ls")(ls.command)
app.command("cp")(cp.command)
app.command("cat")(cat.command)
app.command("init")(init.command)
app.command("methods")(methods.command)
app.command("schema")(schema.command)
app.command("doctor")(doctor.command)


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, show_default=False)
    ] = False,
) -> None:
    """Options of the program itself."""
    if version:
        from zotune import __version__

        print(f"zotune {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, the error's own code, 2 for usage, 130 or 143 for a signal."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    if several and arguments and arguments[0] in NAMES - {"train", "resume"}:
        text = f"`zotune {arguments[0]}` is for one process. Remedy: start it without torchrun."
        leads = os.environ.get("RANK", "0") == "0"
        sys.exit(fail(text, 2, as_json="--json" in arguments) if leads else 2)
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="zotune", standalone_mode=False)
    except KeyboardInterrupt:  # before a command was at work
        sys.exit(fail("interrupted. Remedy: start the command again.", 130, as_json="--json" in arguments))
    except Exception as error:
        # What the parser raises is told by its methods: the class has moved between typer's releases.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message(), file=sys.stderr)
            sys.exit(2)
        name = next((word for word in arguments if word in NAMES), "")
        flags = {parameter.name for parameter in getattr(command, "commands", {})[name].params} if name else set()
        text = _hinted(" ".join(message().split()).rstrip(".?"), getattr(error, "option_name", None), flags)
        remedy = f"Remedy: see `{' '.join(filter(None, ('zotune', name, '--help')))}`."
        sys.exit(fail(f"{text}. {remedy}", 2, as_json="--json" in arguments))
    sys.exit(code if isinstance(code, int) else 0)


def _hinted(said: str, unknown: str | None, flags: set[str]) -> str:
    """What the parser says; of an option that there is not, with the nearest of the command's own, by its meaning."""
    if unknown is None:
        return said
    from zotune.resolve import nearest

    hint = nearest(unknown, flags).rstrip(".")
    hint = re.sub("'(\\w+)'", lambda found: flag(found[1]), hint)
    return f"No such option: {unknown}.{hint}" if hint else said


NAMES = frozenset(command.name for command in app.registered_commands)
