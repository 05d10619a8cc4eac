"""What precision `exact` costs: the same work in float32, and the book's code."""

from benchmarks.harness import Contender, Row
from benchmarks.rows import decoding, pretraining
from benchmarks.setting import Setting

NOTES = "The same weights, data and code in both precisions, on the same threads. llms-from-scratch: in float32. "
PRECISIONS = ("exact", "float32")
PRETRAIN, TINY_PRETRAIN = pretraining.Steps(2, 256, 2, "exact"), pretraining.Steps(2, 16, 1, "exact")


def pretrain(size: pretraining.SizeName, work: pretraining.Steps) -> Row:
    works = {precision: {"size": size, "work": work._replace(precision=precision)} for precision in PRECISIONS}
    contenders = {
        precision: Contender(pretraining.ours, options | {"micro_batch_size": work.batch_size})
        for precision, options in works.items()
    }
    contenders["llms-from-scratch"] = Contender(pretraining.book, works["float32"])
    return Row("tokens", contenders, {"float32": 0.33}, NOTES)


def decode(size: pretraining.SizeName, n_prompts: int, n_tokens: int) -> Row:
    work = decoding.Work(size, n_prompts, n_tokens, n_tokens)
    contenders = {
        precision: Contender(decoding.ours, {"work": work, "setting": Setting(precision)}) for precision in PRECISIONS
    }
    return Row("new tokens", contenders, {"float32": 0.4}, NOTES)


ROWS = {
    "exact_pretrain": pretrain("124M", PRETRAIN),
    "exact_decode_1": decode("124M", 1, 64),
    "exact_decode_16": decode("124M", 16, 64),
}
TINY = {
    "exact_pretrain": pretrain("nano", TINY_PRETRAIN),
    "exact_decode_1": decode("nano", 1, 4),
    "exact_decode_16": decode("nano", 2, 4),
}
