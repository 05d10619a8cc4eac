"""The command line: use the models of the pipeline, and compare and verify its results."""

import sys

import typer

from scratchlm.cli import models, pipeline
from scratchlm.run.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def scratchlm() -> None:
    """Use the models that `dvc repro` built, and compare and verify its results."""


app.command()(models.chat)
app.command()(models.classify)
app.command()(models.export)
app.command("import")(models.import_model)
app.command()(pipeline.results)
app.command()(pipeline.repair)
app.command()(pipeline.verify)
app.command()(pipeline.compare)
app.command()(pipeline.seeds)
app.command()(pipeline.build)
app.command("mend", hidden=True)(pipeline.repair)  # the old name of `repair`


def main() -> None:
    """The entry point: a mistake of the user is one sentence and status 1."""
    try:
        app()
    except UserError as error:
        sys.exit(f"scratchlm: {error}")


if __name__ == "__main__":
    main()
