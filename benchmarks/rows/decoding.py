"""Greedy decoding of random prompts in batches of 1 and 16, and of responses to the test instructions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.baselines import SEED, LlamaServer, ShapeName, book_model, huggingface_model, our_config, our_model
from benchmarks.harness import Contender, Row, Run
from benchmarks.setting import Setting
from benchmarks.sources import instruction_splits
from scratchlm.fast.decoding import for_inference
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, SizeName
from scratchlm.model.generate import Stopping, generate

NOTES = (
    "Equal: weights, prompts as token ids, greedy choice, how many tokens are made; prompts are read anew in each "
    "call, and reading them is part of the time. "
)
PRECISIONS = {
    "float32": "llama.cpp: float32 weights; its cache is float16, its default and its fastest.",
    "bfloat16": "scratchlm: autocast. transformers: the model in bfloat16. llama.cpp: matrices and cache in float16.",
}


class Work(NamedTuple):
    """n_prompts random prompts of the model's vocabulary, and the tokens made after each."""

    size: ShapeName
    n_prompts: int
    prompt_tokens: int
    new_tokens: int

    def prompts(self) -> list[list[int]]:
        source, vocab_size = torch.Generator().manual_seed(SEED), our_config(self.size).vocab_size
        return torch.randint(vocab_size - 1, (self.n_prompts, self.prompt_tokens), generator=source).tolist()


def ours(work: Work, setting: Setting) -> Run:
    """As stages/generate.py decodes a batch."""
    context, prompts = setting.start(), work.prompts()
    with context.autocast():
        model = for_inference(our_model(work.size).to(context.device))

    def run() -> float:
        with context.autocast():
            found = generate(model, prompts, Stopping(work.new_tokens, None))
        return sum(len(generation.token_ids) for generation in found)

    return run


def book(work: Work) -> Run:
    """The book's function, which takes one prompt and has no KV cache."""
    from llms_from_scratch.ch05 import generate as book_generate

    model, prompts = book_model(work.size).eval(), work.prompts()  # type: ignore[arg-type]

    def run() -> float:
        continued = [book_generate(model, torch.tensor([p]), work.new_tokens, GPT2_CONTEXT_LENGTH) for p in prompts]
        return sum(found.shape[1] - work.prompt_tokens for found in continued)

    return run


def huggingface(work: Work, precision: str, device: str = "cpu", compiler: str | None = None) -> Run:
    """compiler: the backend of torch.compile for steps on a static cache, which transformers compiles by itself."""
    from transformers import CompileConfig

    model = huggingface_model(work.size, precision).to(device).eval()
    model.generation_config.eos_token_id = None
    prompts = torch.tensor(work.prompts(), device=device)
    settings: dict[str, Any] = {}
    if compiler:
        compiling = CompileConfig(backend=compiler)
        compiling._compile_all_devices = True  # on a CPU too, to try the row there
        settings = {"cache_implementation": "static", "compile_config": compiling}

    def run() -> float:
        found = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=work.new_tokens, do_sample=False,
            pad_token_id=our_config(work.size).vocab_size - 1, **settings,
        )  # fmt: skip
        return found.shape[0] * (found.shape[1] - work.prompt_tokens)

    return run


def llama(work: Work, precision: str) -> Run:
    """llama.cpp's HTTP server with one slot per prompt; the replies give the number of tokens."""
    context = 256 * -(-(work.prompt_tokens + work.new_tokens + 1) // 256)  # llama.cpp allocates in this unit
    server = LlamaServer(work.size, half=precision != "float32", slots=work.n_prompts, slot_tokens=context)
    prompts = work.prompts()
    return lambda: sum(len(found) for found in server.continued(prompts, work.new_tokens))


def test_set(source: str, vocabulary: str) -> list[tuple[list[int], int]]:
    """Each test instruction's prompt and the length of its reference response, including the end token."""
    rows = instruction_splits(source, vocabulary)["test"]
    return [(row["prompt_token_ids"], len(row["response_token_ids"]) + 1) for row in rows]


def our_responses(size: SizeName, source: str, vocabulary: str, batch_size: int) -> Run:
    context = Setting().start()
    model, asked = for_inference(our_model(size).to(context.device)), test_set(source, vocabulary)
    batches = [asked[start : start + batch_size] for start in range(0, len(asked), batch_size)]

    def run() -> float:
        return sum(len(found.token_ids) for batch in batches for found in answered(batch))

    def answered(batch: Sequence[tuple[list[int], int]]) -> list:
        prompts, lengths = zip(*batch, strict=True)
        with context.autocast():
            return generate(
                model, prompts, Stopping(max(lengths), None, lambda row, token_ids: len(token_ids) == lengths[row])
            )

    return run


def book_responses(size: SizeName, source: str, vocabulary: str, n_responses: int) -> Run:
    """An evenly spaced part of the test set: the cost of a response does not depend on the others."""
    from llms_from_scratch.ch05 import generate as book_generate

    model, asked = book_model(size).eval(), test_set(source, vocabulary)
    some = [asked[i * len(asked) // n_responses] for i in range(n_responses)]

    def run() -> float:
        return sum(
            book_generate(model, torch.tensor([prompt]), length, GPT2_CONTEXT_LENGTH).shape[1] - len(prompt)
            for prompt, length in some
        )

    return run


def decode_row(size: ShapeName, n_prompts: int, n_tokens: int, precision: str, targets: dict[str, float]) -> Row:
    """n_prompts prompts of n_tokens tokens each, and as many new tokens."""
    work = Work(size, n_prompts, n_tokens, n_tokens)
    contenders = {
        "scratchlm": Contender(ours, {"work": work, "setting": Setting(precision)}),
        "llama.cpp": Contender(llama, {"work": work, "precision": precision}),
        "transformers": Contender(huggingface, {"work": work, "precision": precision}),
    }
    notes = f"{NOTES}Prompts at once: {n_prompts}; prompt and new tokens: {n_tokens} each. {PRECISIONS[precision]}"
    return Row("new tokens", contenders, targets, notes)


def with_book(row: Row) -> Row:
    """Add the book, which is much slower, to a row."""
    work = row.contenders["scratchlm"].options["work"]
    notes = f"{row.notes} llms-from-scratch: the book's generate, which keeps no cache."
    return row._replace(
        contenders={**row.contenders, "llms-from-scratch": Contender(book, {"work": work})}, notes=notes
    )


def responses_row(size: SizeName, source: str, vocabulary: str, some: int) -> Row:
    shape: dict[str, Any] = {"size": size, "source": source, "vocabulary": vocabulary}
    contenders = {
        "scratchlm": Contender(our_responses, shape | {"batch_size": 16}),
        "llms-from-scratch": Contender(book_responses, shape | {"n_responses": some}),
    }
    notes = (
        "Equal: weights, float32, prompts of the test instructions, greedy choice; each response is as long as its "
        "reference answer and the end token, for random weights never end. scratchlm answers all of them, 16 at once; "
        f"llms-from-scratch {some} evenly spaced ones, one by one without a cache."
    )
    return Row("new tokens", contenders, {"llms-from-scratch": 15.0}, notes, repeats=3)


def make_rows(
    small: SizeName, large: SizeName, source: str, vocabulary: str, n_tokens: int, some: int
) -> dict[str, Row]:
    many = {"llama.cpp": 2.0, "transformers": 2.5}
    return {
        "decode_1_float32": with_book(
            decode_row(small, 1, n_tokens, "float32", {"llama.cpp": 0.6, "transformers": 1.5})
        ),
        "decode_1_bfloat16": decode_row(small, 1, n_tokens, "bfloat16", {"llama.cpp": 0.65, "transformers": 1.5}),
        "decode_16_float32": decode_row(small, 16, n_tokens, "float32", many),
        "decode_16_bfloat16": decode_row(small, 16, n_tokens, "bfloat16", many),
        "responses_355M": responses_row(large, source, vocabulary, some),
    }


def smollm2_rows(size: ShapeName, n_tokens: int) -> dict[str, Row]:
    bars = {"llama.cpp": 0.85, "transformers": 1.3}
    return {f"decode_{n}_smollm2_bfloat16": decode_row(size, n, n_tokens, "bfloat16", bars) for n in (1, 16)}


ROWS = make_rows("124M", "355M", "instruction-data", "gpt2-124M", n_tokens=64, some=10)
ROWS |= smollm2_rows("smollm2-135m", 64)
TINY = make_rows("nano", "nano", "sample-instructions", "gpt2-nano", n_tokens=4, some=2)
TINY |= smollm2_rows("tiny-llama", 4)
