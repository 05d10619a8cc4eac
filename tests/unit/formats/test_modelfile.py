"""The Modelfile of a GGUF file: its template says in Go what ours say in Jinja, and llama.cpp answers as we do."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from transformers.utils.chat_template_utils import render_jinja_template

from scratchlm.data.byte_pairs import END_OF_TEXT, BytePairTokenizer, train_byte_pairs
from scratchlm.data.prompts import PromptStyle, chat_template, encode_prompt
from scratchlm.formats.gguf import save_gguf
from scratchlm.formats.modelfile import PLAIN, go_template, modelfile
from scratchlm.model.generate import Stopping, generate
from tests import llama, smollm
from tests.perturbed import perturbed
from tests.unit.judge.ollama_stand_in import llama_server

Message = dict[str, str]
TOKENIZERS = {  # style -> the tokenizer of a model that is asked so
    "alpaca": lambda: BytePairTokenizer(*llama.tiny_pairs("llama3")),
    "phi3": lambda: BytePairTokenizer(*train_byte_pairs(["Write the opposite of hot."] * 9, 270)),
    "chatml": lambda: BytePairTokenizer(*smollm.tiny_pairs()),
}


def rendered(template: str, messages: Sequence[Message]) -> str:
    """What Go makes of a template, as Ollama calls it. Source: ollama, template/template.go, Execute."""
    parts = re.split(r"{{ (.*?) }}", template)
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    text, rest = evaluated(parts, 0, {"System": system, "Messages": list(messages)})
    assert rest == len(parts)
    return text


def evaluated(parts: list[str], at: int, scope: Mapping[str, Any]) -> tuple[str, int]:
    """The text from parts[at], which is plain, to the `end` or `else` of its block, and the place of that."""
    text = parts[at]
    while (at := at + 1) < len(parts):
        word, _, condition = parts[at].partition(" ")
        if word in ("end", "else"):
            return text, at
        if word == "range":
            rounds = [
                evaluated(parts, at + 1, {"Role": each["role"], "Content": each["content"]})
                for each in scope[condition[1:]]
            ]
            _, at = evaluated(parts, at + 1, {"Role": "", "Content": ""})
            text += "".join(found for found, _ in rounds)
        elif word == "if":
            found, at = branch(parts, at, condition, scope, False)
            text += found
        else:
            text += scope[parts[at].removeprefix(".")]
        text += parts[at + 1]
        at += 1
    return text, at


def branch(parts: list[str], at: int, condition: str, scope: Mapping[str, Any], is_done: bool) -> tuple[str, int]:
    """The text of the first branch that holds of an `if` at `at`, and the place of its `end`."""
    if equal := re.fullmatch(r'eq \.(\w+) "(\w+)"', condition):
        holds = scope[equal[1]] == equal[2]
    elif negated := re.fullmatch(r"not \.(\w+)", condition):
        holds = not scope[negated[1]]
    else:
        assert condition == "", condition
        holds = True
    found, stop = evaluated(parts, at + 1, scope)
    text = found if holds and not is_done else ""
    if parts[stop] == "end":
        return text, stop
    more, stop = branch(
        parts, stop, parts[stop].removeprefix("else").removeprefix(" if").strip(), scope, is_done or holds
    )
    return text + more, stop


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Modelfile with their values. Source: ollama, parser/parser.go."""
    rest = text
    while rest:
        found = re.match(r'(PARAMETER \w+|[A-Z]+) (?:"""(.*?)"""|"(.*?)"|(.*?))\n', rest, flags=re.DOTALL)
        assert found, rest
        yield found[1], next(value for value in found.groups()[1:] if value is not None)
        rest = rest[found.end() :]


def special_ids(tokenizer: BytePairTokenizer, text: str) -> list[int]:
    """Ids of a text in which special tokens count, as in Ollama."""
    special = tokenizer.special_tokens
    pieces = re.split(f"({'|'.join(map(re.escape, special))})", text)
    return [i for piece in pieces for i in ([special[piece]] if piece in special else tokenizer.encode(piece))]


@pytest.mark.parametrize("style", TOKENIZERS)
def test_ollama_words_a_chat_as_finetuning_and_other_programs_do(style: PromptStyle) -> None:
    tokenizer = TOKENIZERS[style]()
    settings = tokenizer.pairs.settings
    found = list(instructions(modelfile("my.gguf", settings, 256, style, "CC0\n\nof all")))
    values = dict(found)
    assert (values["FROM"], values["LICENSE"]) == ("./my.gguf", "CC0\n\nof all")
    assert {key: float(values[f"PARAMETER {key}"]) for key in ("num_ctx", "temperature", "repeat_penalty")} == {
        "num_ctx": 256, "temperature": 0, "repeat_penalty": 1,
    }  # fmt: skip
    assert [value for key, value in found if key == "PARAMETER stop"] == [settings.end_token]
    asked = {"role": "user", "content": "Write the opposite of hot.\n"}
    prompt = encode_prompt({"instruction": asked["content"], "input": ""}, style, tokenizer)
    assert tokenizer.begin_ids + special_ids(tokenizer, rendered(values["TEMPLATE"], [asked])) == prompt
    talk = [asked, {"role": "assistant", "content": "cold"}, {"role": "user", "content": "{{ .Role }}"}]
    system = {"role": "system", "content": "Be kind."}
    for end in {settings.end_token, END_OF_TEXT}:
        for chat in (talk, [system, *talk]):
            jinja = chat_template(style, end)
            (theirs,), _ = render_jinja_template([chat], chat_template=jinja, add_generation_prompt=True)
            assert rendered(go_template(style, end), chat) == theirs


def test_a_model_that_is_asked_in_no_style_continues_texts_or_keeps_its_own_template() -> None:
    settings = TOKENIZERS["phi3"]().pairs.settings
    assert dict(instructions(modelfile("a.gguf", settings, 8, None, None)))["TEMPLATE"] == PLAIN
    own = settings.model_copy(update={"chat_template": "{{ messages }}"})
    assert "TEMPLATE" not in modelfile("a.gguf", own, 8, None, None)
    assert 'PARAMETER stop "<|im_end|>"' in modelfile("a.gguf", settings, 8, "chatml", None)


@pytest.mark.parametrize("style", TOKENIZERS)
def test_llama_cpp_answers_a_chat_as_we_do_without_being_told_how_to_decode(
    style: PromptStyle, tiny_gpt: Any, tmp_path: Path
) -> None:
    tokenizer = TOKENIZERS[style]()
    settings = tokenizer.pairs.settings
    size = {"vocab_size": tokenizer.vocab_size, "context_length": 256, "n_heads": 4, "emb_dim": 32}
    model = perturbed(tiny_gpt(**size), 0.3)
    with torch.no_grad():  # llama.cpp names no token that ends within a character
        for token, token_id in tokenizer.pairs.encoder.items():
            if not token.isascii() or token in settings.special_tokens:
                model.head.weight[token_id] = 0
    template = chat_template(style, settings.end_token, settings.begin_token)
    save_gguf(tmp_path / "chat.gguf", model, tokenizer, template, general={"name": "chat", "license": "cc0-1.0"})
    server = llama_server(tmp_path / "chat.gguf", 256)
    request = {
        "messages": [{"role": "user", "content": "Write the opposite of hot."}],
        "max_tokens": 30,
        "logprobs": True,
    }
    reply = requests.post(f"{server.listening_address}/v1/chat/completions", json=request, timeout=60).json()
    theirs = [token["id"] for token in reply["choices"][0]["logprobs"]["content"]]
    prompt = encode_prompt({"instruction": "Write the opposite of hot.", "input": ""}, style, tokenizer)
    (ours,) = generate(model, [prompt], Stopping(30, tokenizer.end_token_id))
    assert reply["usage"]["prompt_tokens"] == len(prompt)
    assert theirs == ours.token_ids and len(theirs) == 30
