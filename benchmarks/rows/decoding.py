"""Greedy decoding of random prompts in batches of 1 and 16, and of responses to the test instructions."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.baselines import SEED, LlamaServer, ShapeName, book_model, huggingface_model, our_config, our_model
from benchmarks.harness import Contender, Row, Run
from benchmarks.sources import instruction_splits
from scratchlm.fast.decoding import for_inference
from scratchlm.fast.kernels import set_up
from scratchlm.model.config import GPT2_CONTEXT_LENGTH, SizeName
from scratchlm.model.generate import Stopping, generate
from scratchlm.run.context import Run as StageRun
from scratchlm.run.device import DeviceParams

NOTES = (
    "Equal: weights, prompts as token ids, greedy choice, how many tokens are made; prompts are read anew in each "
    "call, and reading them is part of the time. "
)
PRECISIONS = {
    "float32": "llama.cpp: float32 weights; its cache is float16, its default and its fastest.",
    "bfloat16": "scratchlm: autocast. transformers: the model in bfloat16. llama.cpp: matrices and cache in float16.",
}


def random_prompts(size: ShapeName, n_prompts: int, n_tokens: int) -> list[list[int]]:
    source, vocab_size = torch.Generator().manual_seed(SEED), our_config(size).vocab_size
    return torch.randint(vocab_size - 1, (n_prompts, n_tokens), generator=source).tolist()


def ours(size: ShapeName, n_prompts: int, prompt_tokens: int, new_tokens: int, precision: str) -> Run:
    """As stages/generate.py decodes a batch."""
    params = DeviceParams(device="cpu", threads=torch.get_num_threads(), precision=precision, compile=False)  # type: ignore[arg-type]
    context = StageRun()
    set_up(context, params)
    prompts = random_prompts(size, n_prompts, prompt_tokens)
    with context.autocast():
        model = for_inference(our_model(size).to(context.device))

    def run() -> float:
        with context.autocast():
            found = generate(model, prompts, Stopping(new_tokens, None))
        return sum(len(generation.token_ids) for generation in found)

    return run


def book(size: SizeName, n_prompts: int, prompt_tokens: int, new_tokens: int) -> Run:
    """The book's function, which takes one prompt and has no KV cache."""
    from llms_from_scratch.ch05 import generate as book_generate

    model, prompts = book_model(size).eval(), random_prompts(size, n_prompts, prompt_tokens)

    def run() -> float:
        continued = [book_generate(model, torch.tensor([p]), new_tokens, GPT2_CONTEXT_LENGTH) for p in prompts]
        return sum(found.shape[1] - prompt_tokens for found in continued)

    return run


def huggingface(size: ShapeName, n_prompts: int, prompt_tokens: int, new_tokens: int, precision: str) -> Run:
    model = huggingface_model(size, precision).eval()
    model.generation_config.eos_token_id = None
    prompts = torch.tensor(random_prompts(size, n_prompts, prompt_tokens))

    def run() -> float:
        found = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new_tokens, do_sample=False,
            pad_token_id=our_config(size).vocab_size - 1,
        )  # fmt: skip
        return found.shape[0] * (found.shape[1] - prompt_tokens)

    return run


def llama(size: ShapeName, n_prompts: int, prompt_tokens: int, new_tokens: int, precision: str) -> Run:
    """llama.cpp's HTTP server with one slot per prompt; the replies give the number of tokens."""
    context = 256 * -(-(prompt_tokens + new_tokens + 1) // 256)  # llama.cpp allocates in this unit
    server = LlamaServer(size, half=precision != "float32", slots=n_prompts, slot_tokens=context)
    prompts = random_prompts(size, n_prompts, prompt_tokens)
    return lambda: sum(len(found) for found in server.continued(prompts, new_tokens))


def test_set(source: str, vocabulary: str) -> list[tuple[list[int], int]]:
    """Each test instruction's prompt and the length of its reference response, including the end token."""
    rows = instruction_splits(source, vocabulary)["test"]
    return [(row["prompt_token_ids"], len(row["response_token_ids"]) + 1) for row in rows]


def our_responses(size: SizeName, source: str, vocabulary: str, batch_size: int) -> Run:
    params = DeviceParams(device="cpu", threads=torch.get_num_threads(), precision="float32", compile=False)
    context = StageRun()
    set_up(context, params)
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
    shape: dict[str, Any] = {
        "size": size, "n_prompts": n_prompts, "prompt_tokens": n_tokens, "new_tokens": n_tokens, "precision": precision,
    }  # fmt: skip
    contenders = {
        "scratchlm": Contender(ours, shape),
        "llama.cpp": Contender(llama, shape),
        "transformers": Contender(huggingface, shape),
    }
    notes = f"{NOTES}Prompts at once: {n_prompts}; prompt and new tokens: {n_tokens} each. {PRECISIONS[precision]}"
    return Row("new tokens", contenders, targets, notes)


def with_book(row: Row) -> Row:
    """Add the book, which is much slower, to a row."""
    _, options = row.contenders["scratchlm"]
    shape = {key: value for key, value in options.items() if key != "precision"}
    notes = f"{row.notes} llms-from-scratch: the book's generate, which keeps no cache."
    return row._replace(contenders={**row.contenders, "llms-from-scratch": Contender(book, shape)}, notes=notes)


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
