"""The command line: use the models of the pipeline, and compare and verify its results."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from scratchlm.cli import chat, exports, imports, init, look, models, pipeline, rating, repro, results, serve, sources
from scratchlm.cli.project import project_folder
from scratchlm.run.errors import UserError, boundary


class Commands(TyperGroup):
    def invoke(self, context: Any) -> Any:
        """Run a command. Ctrl-C ends it with a sentence; typer would print none."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            raise UserError("interrupted; run this again") from None


# rich's boxes leave half of a line for a description, and show a flag as if it took a <bool>
app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

OF_A_PROJECT = ("dvc.yaml", "params.yaml", "data", "metrics")


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"scratchlm {version('scratchlm')}")
        raise typer.Exit


@app.callback()
def scratchlm(
    _: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Rebuild the pipeline, use its models, and compare and verify its results."""


command: Callable[..., None]
for command in (chat.chat, look.complete, models.classify, look.tokens, look.attention, exports.export):
    app.command()(command)
app.command("import")(imports.import_model)
app.command()(serve.serve)
for command in (init.init, repro.repro, results.results, pipeline.status, pipeline.repair, pipeline.verify):
    app.command()(command)
for command in (rating.rate, pipeline.compare, pipeline.seeds, pipeline.build):
    app.command()(command)
app.add_typer(sources.app, name="sources")
app.command("mend", hidden=True)(pipeline.repair)  # the old name of `repair`


def main() -> None:
    """The entry point: a mistake of the user, or Ctrl-C, is one sentence and status 1."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `<&-` in a shell
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # its encoding may lack a character
    with boundary("scratchlm"), in_the_right_folder(), closing_output():
        app()


@contextmanager
def in_the_right_folder() -> Iterator[None]:
    """Let a refusal of a file that is not here name the project's folder, or say that this is in no project."""
    try:
        yield
    except UserError as error:
        here, top = Path.cwd(), project_folder()
        found, is_missing, _ = str(error).partition(": no such file;")
        is_outside = not (top / "dvc.yaml").exists() and not Path("params.yaml").exists()
        if is_missing and is_outside and Path(found).parts[0] in OF_A_PROJECT:
            raise UserError(f"{here} is not in a clone of the project; run scratchlm inside one") from None
        if is_missing and top != here:
            raise UserError(f"{found}: no such file in {here}; run scratchlm in {top}") from None
        raise


@contextmanager
def closing_output() -> Iterator[None]:
    """Write what is left to print when the block ends, or drop it: Python would try again, and print a traceback."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EPIPE) and error.filename is None:  # what writes a file names it
            error.filename = "standard output"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


if __name__ == "__main__":
    main()
