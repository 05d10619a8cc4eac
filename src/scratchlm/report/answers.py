"""The answers of the assistant's variants: compared with each other, ranked, and in the course of a training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scratchlm.report.inputs import Report, Rows
from scratchlm.report.tables import thinned
from scratchlm.tasks.bootstrap import Ratio, paired_differences
from scratchlm.tasks.variants import ASSISTANT

EXAMPLES = 2  # tasks in each group: best, around the median, worst
MAX_SAMPLES = 12


def answering(report: Report) -> list[dict[str, Any]]:
    """Return each variant of the assistant with its metrics, and the change of its mean score from the assistant's.

    The change is paired by task. It is absent of the assistant itself, and where no task has both scores.
    """
    scores = {
        name: {row["id"]: row["score"] for row in report.responses if row["model"] == name and row["score"] is not None}
        for name in report.params["variants"]
    }
    rows = []
    for name, folder in report.params["variants"].items():
        row = {"name": name, "folder": folder} | report.ablations["generate"][name] | report.metrics["judge"][name]
        tasks = [task for task in scores[ASSISTANT] if task in scores[name]]
        if tasks and name != ASSISTANT:
            row |= paired_change(*(mean_of([scores[model][task] for task in tasks]) for model in (ASSISTANT, name)))
        rows.append(row)
    return rows


def mean_of(values: Sequence[float]) -> Ratio:
    """Return the mean of values, one per example."""
    return Ratio(np.array(values, dtype=float), np.ones(len(values)))


def paired_change(was: Ratio, now: Ratio) -> dict[str, float]:
    """Return the difference of two means and its 95 % interval: `change`, `low` and `high`. See tasks/bootstrap.py."""
    found = paired_differences({"": (was, now)})[""]
    low, high = found.interval or (found.difference, found.difference)
    return {"change": found.difference, "low": low, "high": high}


def answered_tasks(responses: Rows) -> list[dict[str, Any]]:
    """Return each task in its order, with the answers of all variants by name."""
    tasks: dict[str, dict[str, Any]] = {}
    for row in responses:
        task = {key: row[key] for key in ("id", "instruction", "input", "output")}
        tasks.setdefault(row["id"], task | {"answers": {}})["answers"][row["model"]] = row
    return list(tasks.values())


def examples(tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return those of answered_tasks with the assistant's best, median and worst responses."""
    scores = {
        task["id"]: task["answers"][ASSISTANT]["score"]
        for task in tasks
        if ASSISTANT in task["answers"] and task["answers"][ASSISTANT]["score"] is not None
    }
    ranked = sorted(
        (task for task in tasks if task["id"] in scores), key=lambda task: (-scores[task["id"]], task["id"])
    )
    if len(ranked) <= 3 * EXAMPLES:
        return {"All": ranked} if ranked else {}
    middle = (len(ranked) - EXAMPLES) // 2
    return {
        "Best": ranked[:EXAMPLES],
        "Around the median": ranked[middle : middle + EXAMPLES],
        "Worst": ranked[-EXAMPLES:],
    }


def response_samples(report: Report, stage: str) -> list[dict[str, Any]]:
    """Return for each sampled instruction the task and its responses in the course of a training."""
    samples = report.samples[stage]
    asked = samples[0]["responses"] if samples else []
    rows = with_steps(samples, report.curves[stage])
    return [{**task, "rows": [row | {"response": row["responses"][i]} for row in rows]} for i, task in enumerate(asked)]


def with_steps(samples: Rows, curve: Rows) -> list[dict[str, Any]]:
    """Return at most MAX_SAMPLES samples, each with the step of the evaluation that took it."""
    return thinned([{**sample, "step": curve[sample["evaluation"]]["step"]} for sample in samples], MAX_SAMPLES)
