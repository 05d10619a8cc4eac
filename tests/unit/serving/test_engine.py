"""Requests that come and go while others are decoded, against the same prompts alone."""

import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from scratchlm.data.text_stream import TextStream
from scratchlm.fast.decoding import for_inference
from scratchlm.model.generate import GREEDY, SamplingParams, Stopping, generate
from scratchlm.model.gpt import GPTModel
from scratchlm.serving.engine import Busy, Engine, Limits, Request, Update

END = 10
USUAL = Limits(batch_size=4, waiting=100, seconds=60.0)
SAMPLED = SamplingParams(temperature=1.5, top_k=8, top_p=0.95, repetition_penalty=1.3)
Start = Callable[..., tuple[Engine, "queue.Queue[Update]"]]


def letters(token_ids: list[int]) -> str:
    return "".join("abcdefghijk"[token_id] for token_id in token_ids)


def asked(
    prompt: list[int], n_new: int = 6, sampling: SamplingParams = GREEDY, *, stops: Sequence[str] = (),
    whole: bool = True,
) -> Request:  # fmt: skip
    return Request(prompt, n_new, sampling, seed=sum(prompt), stream=TextStream(letters, stops), whole=whole)


@pytest.fixture
def model(tiny_gpt: Callable[..., GPTModel]) -> GPTModel:
    return tiny_gpt(context_length=64).double()


@pytest.fixture
def start(model: GPTModel) -> Iterator[Start]:
    """A function that starts an engine and returns it with the queue of its news."""
    engines: list[Engine] = []

    def started(limits: Limits = USUAL) -> tuple[Engine, queue.Queue[Update]]:
        news: queue.Queue[Update] = queue.Queue()
        engines.append(
            Engine(for_inference(model), END, limits, lambda found: [news.put(one) for one in found] and None)
        )
        return engines[-1], news

    yield started
    for engine in engines:
        engine.close()


class Gate:
    """Lets an engine wait between two steps until it is opened."""

    def __init__(self, engine: Engine) -> None:
        self.passes: queue.Queue[None] = queue.Queue()
        self.reached: queue.Queue[None] = queue.Queue()
        engine.call(self._wait)
        self.reached.get(timeout=30)

    def _wait(self) -> None:
        self.reached.put(None)
        self.passes.get(timeout=30)

    def open(self) -> None:
        self.passes.put(None)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_those_of_each_prompt_alone_in_whatever_order_they_come(
    start: Start, model: GPTModel, sampling: SamplingParams
) -> None:
    engine, news = start()
    prompts = [[(3 * i + j) % 10 for j in range(1 + 5 * i % 7)] for i in range(14)]
    requests = [asked(prompt, 3 + 7 * i % 11, sampling) for i, prompt in enumerate(prompts)]
    found: dict[Request, Update] = {}
    for request in requests[:9]:
        engine.submit(request)
    for request in requests[9:]:  # each joins where another has ended
        found |= {(one := news.get(timeout=30)).request: one}
        engine.submit(request)
    while len(found) < len(requests):
        found |= {(one := news.get(timeout=30)).request: one}
    for request in requests:
        stopping = Stopping(request.max_new_tokens, END)
        (alone,) = generate(model, [request.prompt], stopping, sampling, seeds=[request.seed])
        assert found[request].text == letters(alone.token_ids)
        assert found[request].finish_reason == ("stop" if alone.finished else "length")
    assert engine.n_active == engine.n_waiting == 0
    assert {news.finish_reason for news in found.values()} == {"stop", "length"} or sampling == GREEDY


def test_a_stop_string_ends_an_answer_and_pieces_make_the_same_text(start: Start) -> None:
    engine, news = start()
    engine.submit(asked([3, 2], 20, SAMPLED))
    text = news.get(timeout=30).text
    stop = text[7:9]
    pieces = []
    engine.submit(asked([3, 2], 20, SAMPLED, stops=(stop,), whole=False))
    while not pieces or not pieces[-1].finish_reason:
        pieces.append(news.get(timeout=30))
    assert len(pieces) > 2 and pieces[-1].finish_reason == "stop"
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]


def test_only_so_many_requests_wait_and_those_whose_client_has_gone_make_room(start: Start) -> None:
    engine, news = start(Limits(batch_size=1, waiting=2, seconds=60.0))
    gate = Gate(engine)
    requests = [asked([1], 4), asked([2], 4)]
    for request in requests:
        engine.submit(request)
    with pytest.raises(Busy):
        engine.submit(asked([3], 4))
    requests[0].is_cancelled = True
    gate.open()
    assert news.get(timeout=30).request is requests[1]
    engine.submit(asked([3], 4))
    assert news.get(timeout=30).request.prompt == [3] and news.empty()


def test_a_request_ends_when_its_time_is_over_whether_it_waits_or_is_decoded(start: Start) -> None:
    engine, news = start(Limits(batch_size=1, waiting=2, seconds=60.0))
    gate = Gate(engine)
    decoded, waits = asked([1], 60), asked([2], 60)
    for request in (decoded, waits):
        engine.submit(request)
    waits.ends_at = time.monotonic() - 1
    gate.open()
    first = news.get(timeout=30)
    assert (first.request, first.text, first.finish_reason) == (waits, "", "timeout")
    assert news.get(timeout=30).request is decoded
    gate = Gate(engine)
    engine.submit(late := asked([1], 60))
    gate.open()
    gate = Gate(engine)  # after at least one step
    late.ends_at = time.monotonic() - 1
    gate.open()
    found = news.get(timeout=30)
    assert (found.request, found.finish_reason) == (late, "timeout") and 0 < len(found.text) < 60


def test_a_step_that_fails_ends_its_requests_and_the_next_ones_are_answered(start: Start, model: GPTModel) -> None:
    engine, news = start()
    engine.submit(asked([1, 2]))
    before = news.get(timeout=30)
    gate = Gate(engine)
    with torch.no_grad():
        kept = model.token_embedding.weight[5].clone()
        model.token_embedding.weight[5] = torch.nan
    for request in (asked([5]), asked([5], whole=False)):
        engine.submit(request)
    gate.open()
    for found in (news.get(timeout=30), news.get(timeout=30)):
        assert isinstance(found.finish_reason, FloatingPointError) and found.text == ""
    with torch.no_grad():
        model.token_embedding.weight[5] = kept
    engine.submit(asked([1, 2]))
    assert news.get(timeout=30).text == before.text


def test_calls_run_between_steps_and_their_errors_reach_the_caller(start: Start) -> None:
    engine, news = start()
    engine.submit(asked([1], 60))
    assert engine.call(lambda: 3).result(timeout=30) == 3
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0).result(timeout=30)
    with pytest.raises(SystemExit):  # no Exception, as a panic in Rust is none
        engine.call(sys.exit).result(timeout=30)
    assert engine.is_alive
    assert news.get(timeout=30).finish_reason
