"""A person talks to a model at the terminal."""

import fcntl
import os
import pty
import re
import select
import stat
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.history import FileHistory

from scratchlm.cli import conversation
from scratchlm.cli.chat import history_file
from scratchlm.cli.conversation import Conversation, Turn, latest
from scratchlm.data.byte_pairs import save_byte_pairs
from scratchlm.data.prompts import PromptStyle
from scratchlm.formats.native import save_gpt
from scratchlm.model.config import GPTConfig
from scratchlm.model.gpt import build_model
from scratchlm.run.errors import UserError
from tests import smollm
from tests.clones import REPOSITORY

CONTEXT = 256


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two tiny models of SmolLM2's tokenizer, and one of another vocabulary."""
    project = tmp_path_factory.mktemp("project")
    (project / "dvc.yaml").touch()
    (project / "params.yaml").write_text("tokenize: {instructions: {prompt_style: chatml}}\n")
    (project / "docs").mkdir()
    pairs = smollm.tiny_pairs()
    save_byte_pairs(project / "data/tokens/finetuning_tokenizer", *pairs)
    size = {"context_length": CONTEXT, "n_layers": 1, "n_heads": 2, "emb_dim": 8, "dropout": 0.0, "qkv_bias": True,
            "tied_head": True, "initialisation": "gpt2", "attention": "sdpa"}  # fmt: skip
    for seed, name in enumerate(("finetune_instruct", "finetune_preference/dpo", "other")):
        n_tokens = len(pairs.encoder) + (name == "other")
        save_gpt(project / "data/models" / name, build_model(GPTConfig(vocab_size=n_tokens, **size), seed))
    return project


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(project)
    yield


def talk(style: PromptStyle = "chatml", max_new_tokens: int = 4) -> Conversation:
    model, tokenizer = Path("data/models/finetune_instruct"), Path("data/tokens/finetuning_tokenizer")
    return Conversation(model, tokenizer, style, max_new_tokens, 0.0)


def test_a_prompt_holds_the_turns_before_and_the_input_once(here: None) -> None:
    chat = talk()
    chat.answer("Hi.")
    chat.obey("/input  a cat ")
    chat.answer("Describe it.")
    assert [turn.entry for turn in chat.turns] == [
        {"instruction": "Hi.", "input": ""},
        {"instruction": "Describe it.", "input": "a cat"},
    ]
    assert chat.given == "" and len(chat.turns[0].answer) == 4
    assert chat.obey("/reset") == "a new conversation" and chat.turns == []


def test_alpaca_has_no_turns_and_help_says_so_within_80_columns(here: None) -> None:
    single, several = talk("alpaca"), talk()
    single.answer("Hi.")
    assert single.turns == []
    assert single.obey("/help").endswith("the model does not see earlier ones.")
    assert several.obey("/help").endswith("as much as its context of 256 tokens holds.")
    for chat in (single, several):
        assert max(map(len, chat.obey("/help").splitlines())) < 80
        assert all(name in chat.obey("/help") for name in chat.commands)


def test_the_oldest_turns_are_left_out_where_the_context_is_full_and_this_is_said_once(
    here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = talk()
    for i in range(12):
        chat.answer(f"Say {i}.")
        assert len(chat.prompt(chat.turns, {"instruction": "", "input": ""})) <= CONTEXT
    kept = [turn.entry["instruction"] for turn in chat.turns]
    assert kept == [f"Say {i}." for i in range(12 - len(kept), 12)] and 1 < len(kept) < 12
    assert capsys.readouterr().out.count("(the context of 256 tokens is full: from here on, the oldest turns") == 1
    turns = [Turn({"instruction": "", "input": ""}, [0] * n) for n in (5, 3, 2)]
    for room, n_left in {10: 3, 9: 2, 5: 2, 4: 1, 1: 0}.items():
        left, prompt = latest(turns, lambda turns: [token_id for turn in turns for token_id in turn.answer], room)
        assert left == turns[3 - n_left :] and len(prompt) <= room


def test_a_prompt_longer_than_the_context_is_refused_and_nothing_is_lost(here: None) -> None:
    chat = talk()
    chat.answer("Hi.")
    chat.obey("/input word")
    before = chat.turns
    with pytest.raises(
        UserError, match=r"the prompt would have [\d,]+ tokens, but the model's context has 256; shorten"
    ):
        chat.answer("long " * 200)
    assert (chat.turns, chat.given) == (before, "word")


def test_commands_change_the_settings_or_are_one_sentence(here: None) -> None:
    chat = talk()
    chat.answer("Hi.")
    assert chat.obey("/temperature 0.5") == "temperature 0.5"
    for line, sentence in {
        "/nope": r"/nope is no command; there are /input, /temperature, /model, /reset, /help",
        "/temperature warm": r"temperature is 'warm'; it must be a number: 0, or 0.001 to 100",
        "/temperature 200": r"chat: temperature is 200.0: must be less than or equal to 100",
        "/input": r"/input needs a text; it becomes the input of your next instruction",
        "/model": r"/model needs a folder; data/models has finetune_instruct, finetune_preference/dpo, other",
        "/model none": r"none/config.json: no such file; check the path",
        "/model other": r"vocabulary mismatch: data/models/other has .* tokens",
    }.items():
        with pytest.raises(UserError, match=sentence):
            chat.obey(line)
    assert chat.sampling.temperature == 0.5 and chat.model == Path("data/models/finetune_instruct") and chat.turns
    assert chat.obey("/model finetune_preference/dpo") == "data/models/finetune_preference/dpo: a new conversation"
    assert chat.turns == [] and chat.obey("/model data/models/finetune_instruct").startswith("data/models/finetune_i")


def test_only_the_user_may_read_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, folder in {"": "home/.local/state", "relative": "home/.local/state", str(tmp_path / "x"): "x"}.items():
        monkeypatch.setenv("XDG_STATE_HOME", given)
        file = history_file()
        assert file == tmp_path / folder / "scratchlm/chat_history"
        assert [stat.S_IMODE(path.stat().st_mode) for path in (file.parent, file)] == [0o700, 0o600]
        file.chmod(0o644)
        assert stat.S_IMODE(history_file().stat().st_mode) == 0o600


class Terminal:
    """`scratchlm chat` in a terminal of 80 columns."""

    def __init__(self, folder: Path, state: Path, *words: str) -> None:
        self.leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (24, 80))
        changes = {"PYTHONPATH": str(REPOSITORY / "src"), "XDG_STATE_HOME": str(state), "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scratchlm.cli.main", "chat", *words], cwd=folder, stdin=follower, stdout=follower,
            stderr=follower, env={**os.environ, **changes, "PROMPT_TOOLKIT_NO_CPR": "1"}, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(follower)
        self.output = b""

    def type(self, keys: str) -> None:
        self.output = b""
        os.write(self.leader, keys.encode())

    def wait_for(self, pattern: str) -> None:
        """Wait until the text since the last keys, without the terminal's own sequences, has this pattern."""
        while not re.search(
            pattern, shown := re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]|\r", b"", self.output).decode(errors="replace")
        ):
            assert select.select([self.leader], [], [], 60)[0], shown
            self.output += os.read(self.leader, 4096)


@pytest.mark.long
def test_at_a_terminal_lines_come_back_ctrl_c_stops_the_answer_and_ctrl_d_ends(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    FileHistory(history_file()).store_string("/temperature 0.25")  # an earlier session
    terminal = Terminal(project / "docs", tmp_path, "--max-new-tokens", "1000000", "--temperature", "2")
    terminal.wait_for(r"^\.\./data/models/finetune_instruct, temperature 2; .* to end\n>")
    terminal.type("Say something.\r")
    terminal.wait_for(r"Say something\.\s*\n(.|\n){40}")  # it has begun to answer
    terminal.type("\x03")
    terminal.wait_for(r"\(stopped\)\n>")
    terminal.type("half a line\x03")
    terminal.wait_for(r"half a line\s*\n>")
    terminal.type("\x1b[A\x1b[A\r")  # two lines up
    terminal.wait_for(r"temperature 0\.25\n>")
    terminal.type("/nope\r")
    terminal.wait_for(r"/nope is no command; .*\n>")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    os.close(terminal.leader)
    assert [*FileHistory(history_file()).load_history_strings()] == [
        "/nope", "/temperature 0.25", "Say something.", "/temperature 0.25",
    ]  # fmt: skip


def test_the_language_models_of_a_project_are_found_from_a_subfolder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, config in {"spam": '{"classifier": {}}', "rating": '{"reward_model": {}}', "damaged": "{"}.items():
        (project / "data/models" / name).mkdir()
        (project / "data/models" / name / "config.json").write_text(config)
    monkeypatch.chdir(project / "docs")
    assert conversation.model_names() == ["damaged", "finetune_instruct", "finetune_preference/dpo", "other"]
