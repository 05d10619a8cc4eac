"""The command line: use the models of the pipeline, and compare and verify its results."""

import sys
from collections.abc import Callable

import typer

from scratchlm.cli import models, pipeline
from scratchlm.run.display import printable
from scratchlm.run.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def scratchlm() -> None:
    """Use the models that `dvc repro` built, and compare and verify its results."""


command: Callable[..., None]
for command in (models.chat, models.classify, models.export):
    app.command()(command)
app.command("import")(models.import_model)
for command in (pipeline.results, pipeline.status, pipeline.repair, pipeline.verify):
    app.command()(command)
for command in (pipeline.compare, pipeline.seeds, pipeline.build):
    app.command()(command)
app.command("mend", hidden=True)(pipeline.repair)  # the old name of `repair`


def main() -> None:
    """The entry point: a mistake of the user is one sentence and status 1."""
    try:
        app()
    except (UserError, FloatingPointError) as error:
        sys.exit(f"scratchlm: {printable(str(error))}")


if __name__ == "__main__":
    main()
