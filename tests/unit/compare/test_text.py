import html
import json
import re

import pytest
from markdown_it import MarkdownIt

from scratchlm.compare.changes import Change, Changes
from scratchlm.compare.compare import BETTER, NO_EVIDENCE, NOT_COMPARED, SAME, WORSE, Comparison, Row, Variant
from scratchlm.compare.seeds import spreads
from scratchlm.compare.text import comparison_json, comparison_text, seeds_json, seeds_text


class Named:
    def __init__(self, name: str) -> None:
        self.name, self.commit = name, "1234567" + "0" * 33

    def __str__(self) -> str:
        return f"{self.name} (1234567)"


ROWS = [
    Row("pretrain.val.loss", 3.49708, 3.49708, 0.0, SAME, None, 207),
    Row("finetune_spam.test.accuracy", 0.96, 0.98, 0.02, NO_EVIDENCE, (-0.0132, 0.0526), 150, 1234),
    Row("finetune_spam.test.loss", 0.1 + 0.2, 0.25, -0.05, BETTER, (-0.08, -0.02), 150),
    Row("generate/instruct.exact_matches", 66, 50, -16.0, WORSE, (-26.3, -5.1), 110),
    Row("judge.instruct.mean_score", 72.6933, 60.0, None, NOT_COMPARED, note="the judges differ"),
    Row("finetune_spam.train.loss", 0.002, 0.001, -0.001),
    Row("finetune_spam.train.accuracy_low", 0.9, 0.8, -0.1),
    Row("finetune_spam.test.confusion.ham_as_ham", 10, 11, 1),
    Row("finetune_spam.test.classes.ham.f1", 0.9, 0.8, -0.1, WORSE, (-0.2, -0.05), 150),
    Row("tokenize.vocab_size", 1024, 1024, 0),
    Row("ablate_spam/first.padded_tokens", None, 95, None),
    Row("tokenize.messages.spam", None, 375, None),
]
CHANGES = Changes(
    [
        Change("finetune_instruct.mask_instruction", True, False),
        Change("finetune_spam.epochs", 3, 5),
        Change("finetune_spam.lora.rank", None, 16),
        Change("gpt2_sizes", ["nano"], []),
    ],
    [Change("torch", "2.12.0", "2.13.0")],
    [Change("sms/SMSSpamCollection", "0123456789abcdef", None)],
    [Change("src/scratchlm/training/loop.py", "a", "b", ("pretrain", "finetune_spam", "x", "y"))],
)

RUNS = [
    {
        "test": {"accuracy": accuracy, "accuracy_low": accuracy - 0.1, "accuracy_high": 1.0, "loss": loss},
        "parameters": 17_670_914,
    }
    for accuracy, loss in ((0.90, 0.5), (0.92, 0.7), (0.94, 0.6))
]


def comparison(name: str = "branch", changes: Changes = CHANGES, rows: list[Row] = ROWS) -> Comparison:
    return Comparison(Named("main"), Named(name), rows, changes, ["branch is behind"])  # type: ignore[arg-type]


def test_the_text_by_eye() -> None:
    text = comparison_text([comparison()])
    assert text.startswith(
        """branch (1234567) compared with main (1234567)

metric                             main    branch    change       95 % interval    n  verdict
-------------------------------  ------  --------  --------  ------------------  ---  -------------------
finetune_spam.test.accuracy        0.96      0.98   +0.0200  −0.0132 to +0.0526  150  no evidence (1,200)
finetune_spam.test.loss             0.3      0.25   −0.0500  −0.0800 to −0.0200  150  better
generate/instruct.exact_matches      66        50     −16.0       −26.3 to −5.1  110  worse
judge.instruct.mean_score         72.69        60         –                   –    –  not compared [1]

The same on every example: pretrain.val.loss.

other tracked metrics       main    branch    change
------------------------  ------  --------  --------
finetune_spam.train.loss   0.002     0.001  −0.00100

What differs:

- parameters: finetune_instruct.mask_instruction true → false
- parameters: finetune_spam.epochs 3 → 5
- parameters: finetune_spam.lora.rank – → 16
- parameters: gpt2_sizes nano → empty
- packages: torch 2.12.0 → 2.13.0
- data: sms/SMSSpamCollection 01234567 → –
- code: src/scratchlm/training/loop.py (pretrain, finetune_spam, x and 1 more)

[1] the judges differ.

Only branch has metrics/tokenize.json (in part), metrics/ablate_spam/first.json.

branch is behind.

The 95 % interval of a change comes from a paired bootstrap over n test examples. It covers the choice of these
examples, not the randomness of training, which `scratchlm seeds` measures."""
    )


def test_everything_shows_what_is_the_same_and_what_is_derived() -> None:
    text = comparison_text([comparison()], everything=True)
    for row in ROWS[:-2]:
        assert re.search(rf"^{re.escape(row.metric)} ", text, flags=re.MULTILINE), row.metric
    assert re.search(r"^pretrain.val.loss +3.497 +3.497 +0 +– +207 +the same on every example$", text, re.MULTILINE)


def test_lines_stay_within_120_columns_for_the_longest_names_that_there_are() -> None:
    long = [
        Row("finetune_instruct.after.test_loss", 0.3218, 0.3012, -0.0206, NO_EVIDENCE, (-0.0312, 0.0098), 1100, 123456),
        Row("load_gpt2/1558M.val.bits_per_byte", 0.3218, 0.30124, None, NOT_COMPARED, note="measured " * 30),
    ]
    name = "a-branch-with-a-name-that-nobody-should-give-it"
    text = comparison_text([comparison(name, rows=long)])
    assert max(map(len, text.splitlines())) <= 120
    assert name in text.splitlines()[0]


def test_in_a_narrow_terminal_the_names_of_metrics_have_lines_of_their_own() -> None:
    rows = [
        Row(
            "reward_model/bradley_terry.test.accuracy", 0.7857, 0.7679, -0.018, NO_EVIDENCE, (-0.103, 0.069), 112, 5200
        ),
        Row("reinforce/grpo.test.gain", 0.008674, 0.008259, -0.0004, NO_EVIDENCE, (-0.0341, 0.0333), 112, 9_000_000),
    ]
    assert max(map(len, comparison_text([comparison("workspace", rows=rows)], width=80).splitlines())) <= 80
    text = comparison_text([comparison(rows=rows)], width=80)
    assert (
        "\nreward_model/bradley_terry.test.accuracy\n"
        "  0.7857    0.7679    −0.018    −0.103 to +0.069  112  no evidence (5,200)\n"
        "reinforce/grpo.test.gain\n"
        "0.008674  0.008259   −0.0004  −0.0341 to +0.0333  112  no evidence (> 10⁶)\n"
    ) in text
    assert max(map(len, seeds_text(spreads(RUNS), 60).splitlines())) <= 60


def test_builds_that_are_equal_say_so() -> None:
    assert "\n- nothing in parameters, packages, data or code\n" in comparison_text(
        [comparison(changes=Changes([], [], [], []))]
    )


def test_markdown_is_a_table_with_the_same_cells() -> None:
    page = comparison_text([comparison("a|b")], markdown=True)
    blocks = [block.splitlines() for block in page.split("\n\n")]
    tables = [block for block in blocks if block[0].startswith("|")]
    assert len(tables) == 2
    for table in tables:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(columns) == 1
        assert re.fullmatch(r"(\|:?-+:?)+\|", table[1])
    cells = [cell.strip() for cell in tables[0][2].strip("|").split("|")]
    assert cells == [
        "finetune_spam.test.accuracy", "0.96", "0.98", "+0.0200", "−0.0132 to +0.0526", "150", "no evidence (1,200)"
    ]  # fmt: skip
    assert page.startswith("### a&#124;b (1234567) compared with main (1234567)\n")
    assert page.index("<details>") < page.index(tables[1][2]) < page.index("</details>")


EVIL = "\x1b[31mX\u202e a|b\n\n### @team <img src=http://x> `_"
EVIL_CHANGES = Changes(
    [Change(EVIL, EVIL, [EVIL])], [Change(EVIL, EVIL, EVIL)], [Change(EVIL, EVIL, EVIL)], [Change(EVIL, 1, 2, (EVIL,))]
)
EVIL_ROWS = [
    Row(EVIL, 1.0, 2.0, 1.0, WORSE, (0.5, 1.5), 9, None, EVIL),
    Row(f"{EVIL}2", 1.0, 1.0, 0.0, SAME),
    Row(f"{EVIL}3", 1.0, 2.0, 1.0),
    Row(f"{EVIL}4", None, 2.0, None),
]


def evil_comparison() -> Comparison:
    return comparison(EVIL, EVIL_CHANGES, EVIL_ROWS)._replace(warnings=[EVIL])


def test_no_name_or_value_adds_a_line_or_acts_on_the_terminal() -> None:
    text, harmless = comparison_text([evil_comparison()]), comparison_text([comparison("a", EVIL_CHANGES, EVIL_ROWS)])
    assert not set(text) & {"\x1b", "\u202e"}
    assert "\n###" not in text
    lines = [line for line in text.splitlines() if "compared with" not in line and "metrics/" not in line]
    assert sum(line.startswith(("- ", "[1]")) for line in lines) == 5
    assert text.count("\n-----") == harmless.count("\n-----")
    assert "\x1b" not in seeds_text({EVIL: spreads(RUNS)["test.loss"], f"{EVIL}c": spreads(RUNS)["parameters"]})


def test_no_name_or_value_is_markup_or_a_mention_in_a_comment() -> None:
    page = comparison_text([evil_comparison()], markdown=True)
    rendered = MarkdownIt("commonmark").enable("table").render(page)
    assert set(re.findall(r"<(\w+)", rendered)) == {
        "h3", "table", "thead", "tbody", "tr", "th", "td", "p", "ul", "li", "details", "summary", "code"
    }  # fmt: skip
    assert "<code>" not in rendered.replace("<code>scratchlm seeds</code>", "")
    assert "@team" not in html.unescape(rendered) and "#@" not in html.unescape(rendered)
    assert rendered.count("<table") == 2 and rendered.count("<li>") == 4 and rendered.count("<h3") == 1
    assert not set(page) & {"\x1b", "\u202e"}
    name = r"\u001b[31mX\u202e a|b\n\n#\u200b#\u200b#\u200b @\u200bteam <img src=http://x> `_".replace(
        "\\u200b", "\u200b"
    )
    assert f"<td>{name}</td>" in html.unescape(re.sub(r'<(t[dh]) style="[^"]*">', r"<\1>", rendered))


def test_json_has_every_metric_unrounded() -> None:
    (found,) = json.loads(comparison_json([comparison()]))
    assert found["baseline"] == {"revision": "main", "commit": "1234567" + "0" * 33}
    assert [row["metric"] for row in found["metrics"]] == [row.metric for row in ROWS]
    assert found["metrics"][2]["first"] == 0.1 + 0.2
    assert found["metrics"][1]["interval"] == [-0.0132, 0.0526]
    assert found["metrics"][1]["needed"] == 1234
    assert found["changes"]["code"][0]["stages"] == ["pretrain", "finetune_spam", "x", "y"]
    assert found["warnings"] == ["branch is behind"]


def test_variants_are_named_with_their_revision() -> None:
    main = Named("main")
    compared = Comparison(Variant("instruct", main), Variant("dpo", main), ROWS, CHANGES, [])  # type: ignore[arg-type]
    assert comparison_text([compared]).startswith("dpo of main (1234567) compared with instruct of main (1234567)\n")
    (found,) = json.loads(comparison_json([compared]))
    assert found["revision"] == {"revision": "main", "commit": main.commit, "variant": "dpo"}


@pytest.mark.parametrize("markdown", [False, True])
def test_several_revisions_are_one_page_each(markdown: bool) -> None:
    text = comparison_text([comparison("one"), comparison("two")], markdown=markdown)
    assert text.index("one (1234567) compared with main") < text.index("two (1234567) compared with main")


def test_the_table_of_seeds_has_the_metrics_that_vary_and_names_the_others_but_no_ends_of_intervals() -> None:
    assert seeds_text(spreads(RUNS)).splitlines() == [
        "metric           mean    sd    min    max    minimum detectable difference",
        "-------------  ------  ----  -----  -----  -------------------------------",
        "test.accuracy    0.92  0.02    0.9   0.94                           0.1217",
        "test.loss         0.6   0.1    0.5    0.7                           0.6085",
        "",
        "The same in all runs: parameters 17670914.",
        "",
        "Two single runs that differ by more than the minimum detectable difference can be told apart "
        "(95% confidence). It is",
        "t(2) · √2 · sd, for 3 runs 6.08 · sd.",
    ]


def test_seeds_that_agree_in_everything_say_so() -> None:
    assert seeds_text(spreads(RUNS[:1] * 2)) == (
        "The same in all runs: test.accuracy 0.9, test.loss 0.5, parameters 17670914."
    )


def test_json_of_seeds_has_the_value_of_each_run() -> None:
    found = json.loads(seeds_json("finetune_spam", [1, 2, 3], spreads(RUNS)))
    assert (found["stage"], found["seeds"]) == ("finetune_spam", [1, 2, 3])
    assert found["metrics"]["test.accuracy"]["values"] == [0.9, 0.92, 0.94]
    assert found["metrics"]["test.accuracy_low"]["values"] == pytest.approx([0.8, 0.82, 0.84])
    assert found["metrics"]["test.accuracy"]["minimum_detectable_difference"] == pytest.approx(0.1217, abs=1e-4)
