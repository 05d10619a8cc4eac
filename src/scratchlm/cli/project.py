"""The project's folder, from any folder in it."""

import os
from pathlib import Path

import typer


def project_folder() -> Path:
    """Return the nearest folder with dvc.yaml, the current one or above it; the current one if there is none."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), here)


def in_project(path: Path) -> Path:
    """Return a path of the project, such as data/models, as the current folder leads to it."""
    return Path(os.path.relpath(project_folder() / path))


def default_in_project(context: typer.Context, parameter: typer.CallbackParam, path: Path) -> Path:
    """Return in_project of a path that the user did not type; a typed one is relative to the current folder."""
    source = context.get_parameter_source(str(parameter.name))
    return in_project(path) if source is not None and source.name == "DEFAULT" else path
