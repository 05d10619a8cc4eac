"""The Modelfile of an exported GGUF file, from which `ollama create` makes a model.

Source: github.com/ollama/ollama, docs/modelfile.md and template/template.go.
"""

from scratchlm.data.byte_pairs import BytePairSettings
from scratchlm.data.prompts import END, START, SYSTEM, PromptStyle, format_prompt

PLAIN = "{{ .Prompt }}"  # of a model that continues texts


def modelfile(
    gguf: str, settings: BytePairSettings, context_length: int, style: PromptStyle | None, licence: str | None
) -> str:
    """Return the Modelfile of a GGUF file in the same folder; it decodes greedily, as `scratchlm chat`.

    gguf: the file's name. settings: of the tokenizer. style: of the prompts; without one, Ollama takes the chat
    template in the file, or the model continues texts. licence: None if it is not known.
    """
    lines = [f"FROM ./{gguf}"]
    if style or not settings.chat_template:
        lines.append(f'TEMPLATE """{go_template(style, settings.end_token) if style else PLAIN}"""')
    ends = dict.fromkeys([settings.end_token, *([END] if style == "chatml" else [])])
    lines += [f'PARAMETER stop "{end}"' for end in ends]
    # Else Ollama penalises repeated tokens by 1.1, even where it decodes greedily
    lines += [f"PARAMETER num_ctx {context_length}", "PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    if licence:
        lines.append(f'LICENSE """{licence}"""')
    return "\n".join(lines) + "\n"


def go_template(style: PromptStyle, end_token: str) -> str:
    """Return what chat_template returns, in the template language of Go, which Ollama uses.

    It has no begin token: Ollama's tokenizer adds it.
    """
    if style == "chatml":
        system = f"{{{{ if not .System }}}}{START}system\n{SYSTEM}{END}\n{{{{ end }}}}"
        answered = (
            END if end_token == END else f'{{{{ if eq .Role "assistant" }}}}{end_token}{{{{ else }}}}{END}{{{{ end }}}}'
        )
        message = f"{START}{{{{ .Role }}}}\n{{{{ .Content }}}}{answered}\n"
        return f"{system}{{{{ range .Messages }}}}{message}{{{{ end }}}}{START}assistant\n"
    prompt = format_prompt({"instruction": "{{ .Content }}", "input": ""}, style)
    return (
        '{{ range .Messages }}{{ if eq .Role "user" }}' + prompt
        + '{{ else if eq .Role "assistant" }}{{ .Content }}' + end_token + "{{ end }}{{ end }}"
    )  # fmt: skip
