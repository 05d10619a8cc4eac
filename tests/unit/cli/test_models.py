import pytest

from scratchlm.cli import main, models
from scratchlm.run.errors import UserError


class Letters:
    """A tokenizer of code points."""

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))


def test_what_a_model_says_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show = models.printer(Letters())  # type: ignore[arg-type]
    for character in "\x1b]0;title\x07 a\r\n\u202eß":
        show(0, ord(character))
    assert capsys.readouterr().out == "\\u001b]0;title\\u0007 a\\u000d\n\\u202eß"


def test_what_a_mistake_quotes_cannot_act_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError("key \x1b[2J is unknown\nand \u202e too")

    monkeypatch.setattr(main, "app", refuse)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == "scratchlm: key \\u001b[2J is unknown\nand \\u202e too"
