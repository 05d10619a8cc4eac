"""The prompt style chatml. test_instructions.py has the others."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from scratchlm.data.byte_pairs import BytePairTokenizer
from scratchlm.data.instructions import InstructionsParams, write_instructions
from scratchlm.data.messages import MessagesParams, write_messages
from scratchlm.data.prompts import (
    PromptStyle,
    chat_template,
    check_style,
    encode_conversation,
    encode_prompt,
    format_prompt,
)
from scratchlm.formats.huggingface_tokenizer import save_huggingface_tokenizer
from scratchlm.run.errors import UserError
from scratchlm.run.files import read_table, write_json
from tests import llama, smollm

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
REFUSAL = (
    "prompt style chatml needs the special tokens <|im_start|> and <|im_end|>, which this tokenizer lacks; "
    "choose alpaca or phi3, or the tokenizer of a model that has them, such as SmolLM2"
)


@pytest.fixture(scope="module")
def tiny() -> BytePairTokenizer:
    return BytePairTokenizer(*smollm.tiny_pairs())


def entry(instruction: str, given_input: str = "") -> dict[str, str]:
    return {"instruction": instruction, "input": given_input}


def test_the_prompt_is_smollm2s() -> None:
    user = "<|im_start|>user\nAdd.\n1, 2<|im_end|>\n"
    assert format_prompt(entry("Add.", "1, 2"), "chatml") == SYSTEM + user + "<|im_start|>assistant\n"
    assert "user\nAdd.<|im_end|>" in format_prompt(entry("Add."), "chatml")


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(smollm.SPECIAL)).map("".join))
def test_markers_are_special_tokens_and_the_users_text_is_text(tiny: BytePairTokenizer, text: str) -> None:
    start, end = tiny.special_tokens["<|im_start|>"], tiny.special_tokens["<|im_end|>"]
    ids = encode_prompt(entry(text), "chatml", tiny)
    special = [token_id for token_id in ids if token_id in tiny.special_tokens.values()]
    assert special == [start, end, start, end, start]
    asked = tiny.encode(f"user\n{text}")
    begins = ids.index(end) + 1 + len(tiny.encode("\n")) + 1
    assert ids[begins : begins + len(asked)] == asked
    if not any(token in text for token in smollm.SPECIAL):  # then text that becomes special tokens gives the same ids
        prompt = format_prompt(entry(text), "chatml")
        assert ids == smollm.reference(tiny.pairs, special=True).encode(prompt).ids


def test_the_other_styles_are_plain_text(tiny: BytePairTokenizer) -> None:
    task = entry("Say <|im_end|>.", "12")
    for style in ("alpaca", "phi3"):
        assert encode_prompt(task, style, tiny) == tiny.encode(format_prompt(task, style))  # type: ignore[arg-type]


def test_a_tokenizer_without_the_markers_is_refused(gpt2: BytePairTokenizer, tmp_path: Path) -> None:
    write_json(tmp_path / "tasks.json", [entry("Add.", "1") | {"output": "2"}] * 8)
    params = InstructionsParams(prompt_style="chatml", deduplicate="none", train_fraction=0.5, test_fraction=0.25)
    for attempt in (
        lambda: check_style("chatml", gpt2),
        lambda: write_instructions(tmp_path / "tasks.json", gpt2, tmp_path / "out", params),
    ):
        with pytest.raises(UserError) as failure:
            attempt()
        assert str(failure.value) == REFUSAL
    assert not (tmp_path / "out").exists()
    check_style("alpaca", gpt2)


def test_instructions_are_written_with_the_markers_as_tokens(tiny: BytePairTokenizer, tmp_path: Path) -> None:
    write_json(tmp_path / "tasks.json", [entry("Add.", "1") | {"output": "2<|im_end|>"}] * 8)
    params = InstructionsParams(prompt_style="chatml", deduplicate="none", train_fraction=0.5, test_fraction=0.25)
    write_instructions(tmp_path / "tasks.json", tiny, tmp_path / "out", params)
    row = read_table(tmp_path / "out" / "train.parquet")[0]
    assert row["prompt"] == format_prompt(entry("Add.", "1"), "chatml")
    assert row["prompt_token_ids"] == encode_prompt(entry("Add.", "1"), "chatml", tiny)
    assert row["response_token_ids"] == tiny.encode("2<|im_end|>") and 2 not in row["response_token_ids"]


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_an_answer_ends_with_the_tokenizers_end_token(end: str) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}]
    (text,), _ = render_jinja_template([chat], chat_template=chat_template("chatml", end), add_generation_prompt=True)
    first = format_prompt(entry("Hi"), "chatml")
    assert text == f"{first}Ho{end}\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("style", ["alpaca", "phi3", "chatml"])
@pytest.mark.parametrize("system", [[], [("system", "Be brief.")]])
def test_a_conversation_has_the_words_of_the_chat_template_and_no_markers_of_its_user(
    tiny: BytePairTokenizer, style: PromptStyle, system: list[tuple[str, str]]
) -> None:
    turns = [*system, ("user", "Hi <|im_end|>"), ("assistant", "Ho"), ("user", "?\n")]
    chat = [{"role": role, "content": text} for role, text in turns]
    template = chat_template(style, tiny.pairs.settings.end_token)
    (text,), _ = render_jinja_template([chat], chat_template=template, add_generation_prompt=True)
    ids = encode_conversation(turns, style, tiny)
    assert tiny.decode(ids) == text
    n_markers = 2 * 4 + 1 if style == "chatml" else 1  # around each of four messages, and what begins the answer
    assert sum(token_id in tiny.special_tokens.values() for token_id in ids) == n_markers
    alone = encode_conversation([("user", "Add.")], style, tiny)
    assert alone == encode_prompt(entry("Add."), style, tiny)


@pytest.mark.parametrize("style", ["phi3", "chatml"])
@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_a_conversation_is_worded_as_the_chat_template_words_it(style: PromptStyle, end: str) -> None:
    tokenizer = BytePairTokenizer(*smollm.tiny_pairs(end_token=end))
    asked, said = ["Add.\n1, 2", "And 4?", "Why?"], ["3", " 7 <b>"]
    chat = [{"role": "user", "content": asked[0]}]
    for answer, question in zip(said, asked[1:], strict=True):
        chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    (text,), _ = render_jinja_template([chat], chat_template=chat_template(style, end), add_generation_prompt=True)
    turns = [("user", asked[0]), ("assistant", tokenizer.encode(said[0])), ("user", asked[1])]
    ids = encode_conversation([*turns, ("assistant", said[1]), ("user", asked[2])], style, tokenizer)
    assert tokenizer.decode(ids) == text
    assert ids == smollm.reference(tokenizer.pairs, special=True).encode(text).ids


@pytest.mark.parametrize("kind", llama.KINDS)
def test_a_prompt_starts_with_the_begin_token_where_the_model_has_one(kind: llama.Kind, tmp_path: Path) -> None:
    tokenizer = BytePairTokenizer(*llama.tiny_pairs(kind))
    begin, end = tokenizer.pairs.settings.begin_token, tokenizer.pairs.settings.end_token
    style = "chatml" if kind == "qwen2" else "alpaca"
    ids = encode_prompt(entry("Add.", "1"), style, tokenizer)
    assert (
        ids[: len(tokenizer.begin_ids)] == tokenizer.begin_ids == ([tokenizer.special_tokens[begin]] if begin else [])
    )
    save_huggingface_tokenizer(tmp_path, tokenizer, 64, chat_template(style, end, begin))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "Add.\n1"}]
    text = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == (begin or "") + format_prompt(entry("Add.\n1"), style)
    found = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert found == encode_prompt(entry("Add.\n1"), style, tokenizer)
    (tmp_path / "sms").write_text("ham\ta\nham\tb\nham\tc\nspam\td\nspam\te\nspam\tf\n")
    params = MessagesParams(
        reading="strict", labels=None, deduplicate="none", balance=False, train_fraction=0.5, val_fraction=0.2
    )
    write_messages(tmp_path / "sms", tokenizer, tmp_path / "messages", params, 2, print)
    for row in read_table(tmp_path / "messages" / "train.parquet"):
        assert row["token_ids"] == tokenizer.begin_ids + tokenizer.encode(row["text"])
