"""A person scores responses in the terminal, and sees how far the judge agrees."""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from tabulate import tabulate

from scratchlm.cli.results import WIDTH
from scratchlm.run.display import one_line, say, shortened
from scratchlm.run.files import read_table, refuse_unwritable
from scratchlm.run.params import Section, Seed, read_params
from scratchlm.tasks.variants import Variants

NAME_CHARACTERS = 16  # of a variant in the table
ANSWERS = "a score from 0 to 100, s to skip, q to quit"
MEANING = (
    "n: responses of the variant with your score. you: your mean of these. judge: the judge's mean of all responses. "
    "rho: Spearman's correlation of your scores with the judge's. corrected mean: the judge's mean corrected by your "
    "scores, what your mean of all responses would be. ±: half of a 95 % interval."
)
RESPONSES, JUDGEMENTS = Path("data/responses/generate"), Path("data/responses/judge.parquet")


class Params(Section):
    seed: Seed
    variants: Variants


def rate(
    count: Annotated[int, typer.Option(min=1, help="responses to score, those already scored included")] = 20,
    file: Annotated[Path, typer.Option(help="the ratings: a CSV file that grows with each answer")] = Path(
        "ratings.csv"
    ),
    reference: Annotated[bool, typer.Option("--reference", help="also show the reference answers")] = False,
    show: Annotated[bool, typer.Option("--show", help="ask nothing; only show what the ratings say")] = False,
) -> None:
    """Score responses yourself, blind: does the judge agree with you?"""
    from scratchlm.judge.rating import add_rating, key_of, read_ratings, sample
    from scratchlm.tasks.generation import RESPONSE_SCHEMA

    params, ratings = read_params(Path("params.yaml"), Params), read_ratings(file)
    if not show:
        refuse_unwritable(file)
        paths = [RESPONSES / f"{name}.parquet" for name in params.variants]
        rows = [row for path in paths for row in read_table(path, RESPONSE_SCHEMA)]
        chosen = sample(rows, params.seed, count)
        left = [row for row in chosen if key_of(row) not in ratings]
        for number, row in enumerate(left, len(chosen) - len(left) + 1):
            say(_question(row, number, len(chosen), reference))
            answer = _answer()
            if answer == "q":
                break
            ratings[key_of(row)] = None if answer == "s" else float(answer)
            add_rating(file, key_of(row), ratings[key_of(row)])
    say(_summary(params.variants, ratings))


def _question(row: Mapping[str, Any], number: int, total: int, reference: bool) -> str:
    parts = {"Instruction": row["instruction"], "Input": row["input"], "Reference": row["output"] if reference else ""}
    parts["Response"] = row["response"] or "(empty)"
    paragraphs = [f"{title}:\n{_wrapped(text)}" for title, text in parts.items() if text]
    return "\n\n".join([f"{f' {number} of {total} ':-^{WIDTH}}", *paragraphs])


def _wrapped(text: str) -> str:
    lines = (textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="  ") for line in text.splitlines())
    return "\n".join(lines)


def _answer() -> str:
    """Return `s`, `q` or a score as the person typed it; the end of the input is `q`."""
    from scratchlm.judge.rating import score_of

    while True:
        try:
            answer = input(f"\n{ANSWERS}: ").strip().lower()
        except EOFError:
            print()
            return "q"
        if answer in ("s", "q") or score_of(answer) is not None:
            return answer
        say(f"{one_line(answer)[: WIDTH // 2]!r} is not {ANSWERS}")


def _summary(variants: Iterable[str], ratings: Mapping[tuple[str, str], float | None]) -> str:
    """Return the table of what the ratings say of the judge, or why there is none."""
    from scratchlm.judge.anchor import anchored
    from scratchlm.judge.scoring import JUDGEMENT_SCHEMA

    n_skipped = sum(score is None for score in ratings.values())
    counts = f"{len(ratings) - n_skipped} scored, {n_skipped} skipped"
    if not JUDGEMENTS.exists():
        return f"{counts}\n\n`dvc repro` makes the judge's scores, to compare yours with"
    judged = read_table(JUDGEMENTS, JUDGEMENT_SCHEMA)
    rows = []
    for name in variants:
        if found := anchored([row for row in judged if row["model"] == name], dict(ratings)):
            rho = "–" if found.spearman is None else f"{found.spearman:.2f}"
            means = [f"{found.person:.1f}", f"{found.judge:.1f}", _cell(found.difference, "+")]
            variant = one_line(shortened(name, NAME_CHARACTERS))
            rows.append([variant, str(found.rated), *means, rho, _cell(found.corrected, "")])
    if not rows:
        return f"{counts}\n\nno current response has both your score and the judge's"
    head = ["variant", "n", "you", "judge", "judge − you", "rho", "corrected mean"]
    align = ["left", *["right"] * (len(head) - 1)]
    table = tabulate(rows, head, disable_numparse=True, colalign=align)
    return f"{counts}\n\n{table}\n\n{textwrap.fill(MEANING, WIDTH)}"


def _cell(estimate: Any, sign: str) -> str:
    arm = f" ± {estimate.interval[1] - estimate.mean:.1f}" if estimate.interval else ""
    return f"{estimate.mean:{sign}.1f}".replace("-", "\N{MINUS SIGN}") + arm
