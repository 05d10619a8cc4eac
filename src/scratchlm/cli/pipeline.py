"""Commands on the pipeline and its results: status, repair, verify, compare, rerun with other seeds, build."""

import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from scratchlm.run.arrow_startup import do_without_pandas
from scratchlm.run.code import refuse_path
from scratchlm.run.display import printable, say
from scratchlm.run.errors import UserError
from scratchlm.run.files import missing

FAILED = 3  # the exit status of --fail-if; 1 is a mistake, 2 one in the options

TextOrJson = Annotated[Literal["text", "json"], typer.Option(help="text for people, json for programs")]
Chart = Annotated[Path | None, typer.Option(help="also draw a chart: a new .png, .svg or .pdf file")]


def _width() -> int:
    """The columns that a text may have: at most 120, and those of the terminal."""
    return min(120, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 120


def status() -> None:
    """Say whether the results here are those of the last commit. Keep those of another processor."""
    from scratchlm.verify.status import status

    say(status(Path()))


def repair() -> None:
    """Repair DVC's own files after DVC was killed. `dvc repro` then looks for results in its run cache."""
    from scratchlm.run.watchdog import repair

    if not Path("dvc.yaml").exists():
        raise missing(Path("dvc.yaml"))
    refuse_path(Path())
    for sentence in repair():
        say(sentence)
    if Path("dvc.lock").exists() and Path(".dvc").is_dir():
        from scratchlm.compare.builds import prefer_run_cache

        if prefer_run_cache(Path()):
            say(
                "dvc.lock named outputs that are neither here nor in DVC's cache, and no longer does; `dvc repro` "
                "takes what this machine has computed before from its run cache, and makes the others"
            )


def verify(
    against: Annotated[str, typer.Option(help="the revision to rebuild; uncommitted changes are ignored")] = "HEAD",
    stages: Annotated[list[str] | None, typer.Option(help="only this stage and what it needs; may be repeated")] = None,
    format: TextOrJson = "text",
) -> None:
    """Rebuild a revision in a clean clone and compare all results. The exit status is 1 if one differs."""
    from scratchlm.verify.findings import verification_json, verification_text
    from scratchlm.verify.verify import verify

    result = verify(Path(), against, stages or [])
    say((verification_json if format == "json" else verification_text)(result))
    raise typer.Exit(bool(result.faults))


def compare(
    revisions: Annotated[
        list[str] | None, typer.Argument(help="branches, tags or commits; the first is the baseline")
    ] = None,
    variants: Annotated[
        bool | None,
        typer.Option(
            "--variants/--pairwise",
            help="compare the variants of one revision, by default the workspace; or ask the judge of params.yaml "
            "which revision answers better",
        ),
    ] = None,
    against: Annotated[str, typer.Option(help="the variant to compare the others with")] = "instruct",
    format: Annotated[
        Literal["text", "all", "json", "markdown"],
        typer.Option(help="all: text, with metrics that are the same or derived, too; json has everything"),
    ] = "text",
    plot: Chart = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="`worse`, `METRIC worse`, or a metric with <, >, drops or rises and a number: the exit status is 3 if "
            "that holds; may be repeated"
        ),
    ] = None,
) -> None:
    """Say of each metric: better, worse, or no evidence of either. A single revision is compared with the workspace."""
    names = revisions or []
    _check_names(names, variants, against)
    if variants is False:
        if format == "all" or plot or fail_if:
            raise UserError("--pairwise goes with --format text, json or markdown only; leave out --plot and --fail-if")
        _say_pairwise(names, format)
        return
    from scratchlm.compare.compare import compare_revisions
    from scratchlm.compare.gate import parse_conditions, reasons
    from scratchlm.compare.text import comparison_json, comparison_text
    from scratchlm.compare.variants import compare_variants

    do_without_pandas()
    conditions = parse_conditions(fail_if or [])
    if plot:
        from scratchlm.compare.chart import check_chart_path, write_comparison_chart

        check_chart_path(plot)
    comparisons = compare_variants((names or ["workspace"])[0], against) if variants else compare_revisions(names)
    if format == "json":
        say(comparison_json(comparisons))
    else:
        say(comparison_text(comparisons, everything=format == "all", markdown=format == "markdown", width=_width()))
    if plot:
        write_comparison_chart(plot, comparisons)
    if found := reasons(conditions, comparisons):
        typer.echo(printable("\n".join(found)), err=True)
        raise typer.Exit(FAILED)


def _check_names(names: list[str], variants: bool | None, against: str) -> None:
    if variants and len(names) > 1:
        raise UserError(f"--variants compares those of one revision, not of {len(names)}; name one, or none")
    if not variants and (not names or against != "instruct"):
        needs = "--against names a variant; add --variants" if names else "no revision; name one, or add --variants"
        raise UserError(needs)


def _say_pairwise(names: list[str], format: str) -> None:
    from scratchlm.compare.pairwise import compare_responses, pairwise_json, pairwise_text

    outcomes = compare_responses(names)
    say(pairwise_json(outcomes) if format == "json" else pairwise_text(outcomes, markdown=format == "markdown"))


def seeds(
    stage: Annotated[str, typer.Option(help="a stage that reads the seed, such as finetune_spam or ablate_spam@lora")],
    seeds: Annotated[int, typer.Option(help="the number of runs; seeds count up from the one in params.yaml")] = 5,
    jobs: Annotated[int, typer.Option(help="how many runs at once, each in a private clone; no result changes")] = 1,
    format: TextOrJson = "text",
    plot: Chart = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep the experiments for `dvc exp show`")] = False,
) -> None:
    """Rerun a stage with several seeds: the spread of its metrics. Also show the minimum detectable difference."""
    from scratchlm.compare.chart import check_chart_path, write_seeds_chart
    from scratchlm.compare.seeds import run_seeds, spreads
    from scratchlm.compare.text import seeds_json, seeds_text

    if plot:
        check_chart_path(plot)
    results = run_seeds(Path(), stage, seeds, jobs=jobs, keep=keep)
    metrics = spreads(list(results.values()))
    if format == "json":
        say(seeds_json(stage, results, metrics))
    else:
        runs = f"{seeds} runs with seeds {min(results)} to {max(results)}"
        say(f"{stage}, {runs}, on the same data and base model\n\n{seeds_text(metrics, _width())}")
    if plot:
        write_seeds_chart(plot, f"{stage}, {seeds} seeds", metrics)


def build(
    revisions: Annotated[list[str], typer.Argument(help="branches, tags or commits; `workspace` is not built itself")],
) -> None:
    """Build revisions, so that `compare` can compare them. Work in clones, with one arithmetic; print their names."""
    from scratchlm.compare.builds import build

    build(Path(), revisions)
    typer.echo(" ".join(revisions))  # as given: for the shell
