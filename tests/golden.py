"""Golden results of precision `exact`: a hash of every option's results, which no machine may change.

    PYTHONPATH=src:. python -m tests.golden [--device cuda] [--reference] [--threads N] [--case NAME]… [--write]

Each case trains a tiny model with the project's own loop, or decodes with one, on numbers made from integers. It needs
torch (2.8 or newer) and no file but golden.json. Where micro batches and batches of an evaluation may not change a
bit, each case is computed with several and compared with itself.
"""

import argparse
import hashlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scratchlm.arithmetic import autograd, elementary, functions, reference
from scratchlm.arithmetic.autograd import collect_gradients
from scratchlm.arithmetic.mode import use_exact
from scratchlm.arithmetic.random import drawing_from, fill_normal, stream
from scratchlm.data.byte_pairs import END_OF_TEXT
from scratchlm.data.messages import Messages
from scratchlm.data.tokenizer import UNKNOWN, WordTokenizer
from scratchlm.data.windows import TokenWindows
from scratchlm.model.config import GPTConfig
from scratchlm.model.critic import ActorCritic
from scratchlm.model.generate import Generation
from scratchlm.model.gpt import GPTModel, build_model
from scratchlm.model.lora import LoRAParams, apply_lora, merge_lora
from scratchlm.run import device
from scratchlm.run.context import Run
from scratchlm.run.progress import Progress
from scratchlm.run.resume import Checkpoint
from scratchlm.tasks import instruct, policy_evaluation, preference, reinforce, reward
from scratchlm.tasks.generation import GenerateParams, Responder
from scratchlm.tasks.pretraining import CorpusEvaluation, PretrainParams, pretraining_task, text_sampler
from scratchlm.tasks.settings import EvaluationParams
from scratchlm.tasks.spam import FinetuneSpamParams, finetune_spam
from scratchlm.training.loop import Training, train

FILE = Path(__file__).with_suffix(".json")
TOKENIZER = WordTokenizer([END_OF_TEXT, UNKNOWN, ".", *(f"w{i}" for i in range(98))])
CONTEXT_LENGTH = 24
MODEL = {
    "vocab_size": TOKENIZER.vocab_size, "context_length": CONTEXT_LENGTH, "n_layers": 2, "n_heads": 3, "emb_dim": 24,
    "dropout": 0.0, "qkv_bias": True, "tied_head": False, "initialisation": "torch", "attention": "sdpa",
}  # fmt: skip
TRAINING = {
    "epochs": 1.0, "batch_size": 4, "learning_rate": 0.004, "min_learning_rate": 0.0005, "schedule": "cosine",
    "warmup_steps": 1, "weight_decay": 0.1, "weight_decay_on": "matrices", "beta1": 0.9, "beta2": 0.95,
    "max_grad_norm": 1.0, "evaluate_every_steps": 2,
}  # fmt: skip
PRETRAIN = {"stride": 20, "sample_prompt": "w1 w2.", "sample_tokens": 4, "sample_temperature": 0.0}
SPAM = {
    "base": "a", "pretrained": True, "trainable": "last_block", "position": "last_real", "padding": "longest",
    "dropout": 0.0, "lora": None, "class_weights": None,
}  # fmt: skip
INSTRUCT = {"base": "a", "mask_instruction": False, "dropout": 0.0, "lora": None}
PREFERENCE = {"loss": "dpo", "beta": 0.5, "label_smoothing": 0.0, "dropout": 0.0, "lora": None}
REWARD = {"dropout": 0.0, "lora": None}
REINFORCE = {
    "algorithm": "grpo", "responses_per_prompt": 3, "temperature": 1.0, "max_new_tokens": 5, "unfinished_reward": -0.5,
    "kl_coefficient": 0.05, "clip": 0.2, "updates_per_step": 2, "discount": 1.0, "gae_decay": 0.9,
    "value_coefficient": 0.5, "lora": None,
}  # fmt: skip
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


class Batches(NamedTuple):
    """Settings that change no bit: sequences of a forward pass, in training and without gradients, and recomputing."""

    micro: int
    evaluation: int
    checkpoint: bool = False

    @property
    def training(self) -> dict[str, Any]:
        return {"max_micro_batch_size": self.micro, "checkpoint_activations": self.checkpoint}


BATCHES = [Batches(4, 5), Batches(2, 2, checkpoint=True), Batches(1, 1)]


class QuietRun(Run):
    """A Run without progress bars."""

    def progress(self, total: int, done: int, unit: str, title: str = "") -> Progress:
        return Progress(title, total, done, unit, stream=io.StringIO())


def integers(n: int, seed: int, below: int = len(TOKENIZER.words)) -> list[int]:
    """The high bits of a linear congruential generator; half of the numbers repeat an earlier one."""
    found, z = [], 2 * seed + 1
    for i in range(n):
        z = (z * 6364136223846793005 + 1442695040888963407) % 2**64
        found.append((z >> 33) % below if z >> 63 or not i else found[(z >> 33) % i])
    return found


def lora(layers: str, alpha: float = 2.0) -> LoRAParams:
    return LoRAParams(rank=3, alpha=alpha, layers=layers)


def model(run: Run, **changes: Any) -> GPTModel:
    return build_model(GPTConfig(**MODEL | changes), stream(run.seed, "initialisation")).to(run.device)


def evaluation_params(batches: Batches) -> EvaluationParams:
    return EvaluationParams(context_length=16, batch_size=batches.evaluation, max_rows=5)


def pretrain(run: Run, batches: Batches, shape: Mapping[str, Any] = {}, **changes: Any) -> list[Any]:  # noqa: B006
    gpt = model(run, **shape)
    return [gpt, *_pretrain(gpt, run, batches, changes)]


def _pretrain(gpt: GPTModel, run: Run, batches: Batches, changes: Mapping[str, Any]) -> tuple[Training, Any]:
    params = PretrainParams(**TRAINING | PRETRAIN | changes | batches.training)
    tokens = {"train": np.array(integers(300, 1)), "val": np.array(integers(120, 2))}
    corpus: Any = SimpleNamespace(windows=lambda split, *shape: TokenWindows(tokens[split], *shape))
    evaluation = CorpusEvaluation(corpus, evaluation_params(batches))
    windows = TokenWindows(tokens["train"], CONTEXT_LENGTH, params.stride)
    sample = text_sampler(TOKENIZER, params, run.seed)
    training = train(gpt, pretraining_task(windows, params, evaluation.evaluate, sample), run)
    return training, evaluation.full(gpt, "val")


def resumed(run: Run, batches: Batches, **changes: Any) -> list[Any]:
    """`pretrain`, interrupted in its third step and resumed from the checkpoint."""
    shape = changes.pop("shape")
    with tempfile.TemporaryDirectory() as folder:
        run.checkpoint = Checkpoint(Path(folder), "golden")
        interrupted = model(run, **shape)
        n_heads_left = 2 * -(-4 // batches.micro) + 1

        def interrupt(*_: Any) -> None:
            nonlocal n_heads_left
            n_heads_left -= interrupted.training
            if n_heads_left == 0:
                raise KeyboardInterrupt

        interrupted.head.register_forward_hook(interrupt)
        try:
            _pretrain(interrupted, run, batches, changes)
            raise AssertionError("not interrupted")
        except KeyboardInterrupt:
            assert run.checkpoint.position == "step 2 of 3", run.checkpoint.position
        run.checkpoint = Checkpoint(Path(folder), "golden")
        found = pretrain(run, batches, shape, **changes)
        assert run.checkpoint.position == "step 2 of 3"
    run.checkpoint = Checkpoint()
    return found


def spam(run: Run, batches: Batches, shape: Mapping[str, Any] = {}, **changes: Any) -> list[Any]:  # noqa: B006
    classes, label = ("ham", "spam"), lambda i: i % 2
    if changes.pop("three_classes", False):  # of which the first is half of all
        classes, label = ("a", "b", "c"), lambda i: i % 4 % 3
    params = FinetuneSpamParams(**TRAINING | SPAM | changes | batches.training)
    splits = {
        split: [{"label": label(i), "token_ids": integers(1 + 5 * i % 19, i + n)} for i in range(n)]
        for split, n in (("train", 12), ("val", 7), ("test", 6))
    }
    backbone = model(run, dropout=params.dropout, initialisation="gpt2", n_layers=3, **shape)
    messages, end = Messages(splits, classes), TOKENIZER.end_token_id
    found = finetune_spam(backbone, messages, end, params, evaluation_params(batches), run)
    if len(classes) == 2:
        found = found._replace(probabilities={split: p[:, 1] for split, p in found.probabilities.items()})
    return [*found._replace(adapter=low_rank_matrices(found.adapter))]


def low_rank_matrices(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of an adapter all but alpha, which is a parameter."""
    return {name: tensor for name, tensor in adapter.items() if name != "alpha"}


def instructions(n: int, longest: int = 9) -> list[dict[str, Any]]:
    asked = [integers(1 + 7 * i % longest, i + n) for i in range(n)]
    return [
        {"id": f"{n}-{i}", "instruction": "", "input": "", "output": "", "prompt_token_ids": prompt,
         "response_token_ids": integers(2 + 3 * i % 7, i)}
        for i, prompt in enumerate(asked)
    ]  # fmt: skip


def finetune_instruct(run: Run, batches: Batches, shape: Mapping[str, Any] = {}, **changes: Any) -> list[Any]:  # noqa: B006
    params = instruct.FinetuneInstructParams(**TRAINING | INSTRUCT | changes | batches.training)
    splits = {"train": instructions(12), "val": instructions(5), "test": instructions(6)}
    tasks = instruct.Instructions(splits, TOKENIZER, CONTEXT_LENGTH)
    evaluation = instruct.ResponseEvaluation(tasks, evaluation_params(batches))
    gpt = model(run, dropout=params.dropout, tied_head=True, initialisation="gpt2", **shape)
    apply_lora(gpt, params.lora, run.seed)
    training = train(gpt, instruct.instruct_task(tasks, params, evaluation), run)
    adapter = low_rank_matrices(merge_lora(gpt))
    return [gpt, adapter, training, evaluation.full(gpt), *decode(run, batches, gpt)]


def pairs(n: int) -> list[dict[str, Any]]:
    return [
        row | {"chosen_token_ids": row["response_token_ids"], "rejected_token_ids": integers(1 + 5 * i % 8, i + n)}
        for i, row in enumerate(instructions(n))
    ]


def finetune_preference(run: Run, batches: Batches, **changes: Any) -> list[Any]:
    params = preference.FinetunePreferenceParams(**TRAINING | PREFERENCE | changes | batches.training)
    splits = {"train": pairs(12), "val": pairs(5), "test": pairs(6)}
    given = preference.Preferences(splits, TOKENIZER.end_token_id, CONTEXT_LENGTH)
    evaluation = preference.PairEvaluation(given, params, evaluation_params(batches))
    shape = {"dropout": params.dropout, "tied_head": True, "initialisation": "gpt2"}
    gpt, assistant = model(run, **shape), model(run, **shape)
    evaluation.measure_reference(assistant, run)
    apply_lora(gpt, params.lora, run.seed)
    training = train(gpt, preference.preference_task(given, params, evaluation), run)
    adapter = low_rank_matrices(merge_lora(gpt))
    scores = evaluation.full(gpt, assistant)
    return [gpt, adapter, training, scores, {split: found.metrics() for split, found in scores.items()}]


def reward_model(run: Run, batches: Batches, **changes: Any) -> list[Any]:
    params = reward.RewardModelParams(**TRAINING | REWARD | changes | batches.training)
    splits = {"train": pairs(12), "val": pairs(5), "test": pairs(6)}
    given = preference.Preferences(splits, TOKENIZER.end_token_id, CONTEXT_LENGTH)
    evaluation = reward.RewardEvaluation(given, evaluation_params(batches))
    gpt = model(run, dropout=params.dropout, tied_head=True, initialisation="gpt2")
    rating = reward.build_reward_model(gpt, params, run.seed).to(run.device)
    training = train(rating, reward.reward_task(given, params, evaluation), run)
    adapter = low_rank_matrices(merge_lora(rating))
    scores = evaluation.full(rating)
    return [rating, adapter, training, scores, {split: found.metrics() for split, found in scores.items()}]


def reinforced(run: Run, batches: Batches, **changes: Any) -> list[Any]:
    params = reinforce.ReinforceParams(**TRAINING | REINFORCE | changes | batches.training)
    splits = {
        split: [{"chosen": "", **row} for row in instructions(n)]
        for split, n in (("train", 8), ("val", 5), ("test", 6))
    }
    prompts = policy_evaluation.Prompts(splits, TOKENIZER, CONTEXT_LENGTH, params.max_new_tokens)

    def even_tokens(rows: Any, answers: Sequence[Generation]) -> list[float]:
        shares = [sum(i % 2 == 0 for i in answer.token_ids) / (1 + len(answer.token_ids)) for answer in answers]
        return [share if it.finished else share - 0.5 for share, it in zip(shares, answers, strict=True)]

    evaluation = policy_evaluation.PolicyEvaluation(prompts, even_tokens, evaluation_params(batches))
    gpt, assistant = (model(run, tied_head=True, initialisation="gpt2") for _ in range(2))
    apply_lora(gpt, params.lora, run.seed)
    policy = ActorCritic(gpt) if params.algorithm == "ppo" else gpt
    training = train(policy, reinforce.reinforce_task(prompts, params, even_tokens, evaluation, assistant), run)
    critic = [it.value_head for it in [policy] if isinstance(it, ActorCritic)]
    adapter = low_rank_matrices(merge_lora(gpt))
    records = evaluation.records(assistant, gpt, "test")
    return [gpt, adapter, critic, training, records, policy_evaluation.reward_metrics(records, run.seed)]


def decode(run: Run, batches: Batches, gpt: GPTModel | None = None, **changes: Any) -> list[Any]:
    """The answers to prompts of 1 to 22 tokens; those of the longer ones outgrow the context."""
    gpt, stop = gpt or model(run, **changes.pop("shape", {})), changes.pop("stop", [])
    params = GenerateParams(
        split="test", batch_size=batches.evaluation, max_new_tokens=12, stop=stop, sampling=GREEDY | changes
    )
    answers = Responder(TOKENIZER, params, run).responses(gpt, "golden", instructions(7, longest=23))
    return [answer["response"] for batch in answers for answer in batch]


def operations(run: Run, _: Batches) -> list[Any]:
    """Sums that are long enough to be computed in parts, and operations that the other cases leave out."""
    weights = nn.ParameterList(torch.empty(shape) for shape in ((2, 4500, 6), (5, 6), (5, 4500), (4500, 5)))
    with drawing_from(stream(run.seed, "operations")):
        for weight in weights:
            fill_normal(weight, 0.5)
    x, narrow, wide, tall = weights.to(run.device)
    y = functions.linear(x, narrow)
    z = functions.linear(y.mT.reshape(10, 4500), wide)
    attended = functions.matmul(functions.softmax(functions.matmul(z, z.mT)), z)
    targets = torch.tensor(integers(10, 1, 4500), device=run.device)
    loss = functions.cross_entropy(functions.linear(attended, tall), targets, "mean")
    loss.backward()
    collect_gradients(weights)
    repeated = nn.Parameter(torch.cat([x.detach().flatten()] * 6))
    repeated.grad = repeated.detach().clone()
    functions.clip_gradients([repeated], 0.5)
    return [y, z, loss, repeated.grad, *(weight.grad for weight in weights)]


def last_bits(run: Run, _: Batches) -> list[Any]:
    """Operations on numbers that nearly cancel. The results show the last bits of float64, which float32 hides."""
    source = torch.Generator().manual_seed(run.seed)
    x, g = ((torch.rand(2, 64, 48, generator=source) - 0.5) * 3).to(run.device)
    ones, ends = torch.ones_like(x), [0, 10, 40, 64]
    ids = torch.tensor(integers(64, 1, 9), device=run.device)
    compute: Any = autograd.operations_for(x)
    found = [x, g]
    normal = compute.layer_norm(x[:1], g[0], 0 * g[0])
    found += [compute.layer_norm(x[:1], g[0], -normal[0])]
    found += compute.layer_norm_gradients(g.view(-1, 2), x.view(-1, 2), ones[0, :2])
    near_root = (-0.7524614 + torch.arange(-2000, 2000) * 2.0**-24).to(run.device)  # where GELU's slope is 0
    found += [compute.gelu_gradient(torch.ones_like(near_root), near_root)]
    logits, targets = x.clone(), torch.zeros_like(ids)
    logits[:, 0] = 15.0
    found += [compute.cross_entropy(logits, targets)]
    found += [compute.cross_entropy_gradient(ones[:, 0], logits, targets)]
    sevenths = torch.full((48, 48), 64.0).double(), torch.ones(48).double(), torch.ones(9, 48).double()
    sums = [(it / 7).to(run.device) for it in sevenths]  # a card multiplies by the reciprocal of a number instead
    compute.add_weight_gradients(sums[0], g, x, ends)
    compute.add_column_sums(sums[1], g, ends)
    compute.add_rows(sums[2], ids, g, ends)
    found += [*sums, compute.sum_of_squares(x)]
    betas, scales = (0.9, 0.95), (0.03, 1.1, 1e-8)
    moments = [-g * (0.1 / 0.9), -(g * g) * (0.05 / 0.95) * (1 - 2.0**-20)]
    compute.adamw((ones.clone(), *moments), g, 1.0, betas, scales)
    steps = [0 * x, x.clone(), g.abs()]
    compute.adamw(tuple(steps), g, 1.0, betas, scales)
    weights = (-steps[0].cpu() / 0.999).to(run.device)
    compute.adamw((weights, x.clone(), g.abs()), g, 0.999, betas, scales)
    found += [*moments, weights]
    wide = x.double().flatten() * 10
    if compute is reference:
        return [*found, elementary.exp(wide), elementary.log(wide.abs())]
    from scratchlm.arithmetic import kernels

    arguments = (kernels.exp, wide), (kernels.log, wide.abs())
    return [*found, *(torch.tensor([f(v) for v in x.tolist()], dtype=torch.float64) for f, x in arguments)]


def last_bits_of_variants(run: Run, _: Batches) -> list[Any]:
    """The same for what GPT-2 has not."""
    source = torch.Generator().manual_seed(run.seed)
    x, g = ((torch.rand(2, 64, 48, generator=source) - 0.5) * 3).to(run.device)
    compute: Any = autograd.operations_for(x)
    found = [*compute.rms_norm_gradients(g.view(-1, 2), x.view(-1, 2), torch.ones_like(x[0, :2]))]
    near_root = (-1.2784645 + torch.arange(-2000, 2000) * 2.0**-23).to(run.device)  # where the slope of g σ(g) is 0
    ones = torch.ones_like(near_root)
    pairs = torch.stack((near_root, ones), dim=1)
    found += [compute.rms_norm(x, g[0]), compute.swiglu(pairs), compute.swiglu_gradient(ones[:, None], pairs)]
    return [*found, *elementary.sin_cos(x.double().flatten().cpu() * 3000)]


DROPOUT = {"shape": {"tied_head": True, "dropout": 0.2}, "weight_decay_on": "all", "max_grad_norm": None}
GPT2 = {"shape": {"tied_head": True, "qkv_bias": False, "initialisation": "gpt2"}, "warmup_steps": 0}
# n_heads is 3 elsewhere; a swiglu layer of 24 has a hidden width of 64
LLAMA = {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "n_heads": 6, "n_kv_heads": 2, "qkv_bias": False,
    "bias": False,
}  # fmt: skip
SINUSOIDAL = {"position": "sinusoidal", "head_dim": 10, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 40}
CASES: dict[str, tuple[Callable[..., list[Any]], dict[str, Any]]] = {
    "operations": (operations, {}),
    "last_bits": (last_bits, {}),
    "last_bits_of_variants": (last_bits_of_variants, {}),
    "pretrain": (pretrain, {}),
    "pretrain_gpt2": (pretrain, GPT2),
    "pretrain_dropout": (pretrain, DROPOUT | {"schedule": "constant"}),
    "pretrain_resumed": (resumed, DROPOUT | {"schedule": "constant"}),
    "spam": (spam, {}),
    "spam_head_first": (spam, {"trainable": "head", "position": "first"}),
    "spam_two_blocks_mean": (spam, {"trainable": "last_two_blocks", "position": "mean", "padding": 9}),
    "spam_all_last": (spam, {"trainable": "all", "position": "last", "dropout": 0.1, "weight_decay_on": "all"}),
    "spam_all_mean": (spam, {"trainable": "all", "position": "mean", "pretrained": False, "max_grad_norm": None}),
    "spam_dropout": (spam, {"position": "mean", "dropout": 0.3}),
    "spam_lora_attention": (spam, {"lora": lora("attention")}),
    "spam_lora_all": (spam, {"lora": lora("all", 0.5), "dropout": 0.1, "position": "last", "padding": 30}),
    "classes": (spam, {"three_classes": True, "trainable": "all"}),
    "classes_balanced": (spam, {"three_classes": True, "class_weights": "balanced", "position": "mean"}),
    "instruct": (finetune_instruct, {"weight_decay_on": "all"}),
    "instruct_masked": (finetune_instruct, {"mask_instruction": True, "dropout": 0.1}),
    "instruct_lora_feed_forward": (finetune_instruct, {"lora": lora("feed_forward")}),
    "instruct_lora_blocks": (finetune_instruct, {"lora": lora("blocks"), "dropout": 0.1, "mask_instruction": True}),
    "preference": (finetune_preference, {"label_smoothing": 0.1, "dropout": 0.1}),
    "preference_ipo_lora": (finetune_preference, {"loss": "ipo", "lora": lora("blocks")}),
    "reward": (reward_model, {"dropout": 0.1}),
    "reward_lora_all": (reward_model, {"lora": lora("all")}),
    "reinforce_grpo": (reinforced, {}),
    "reinforce_ppo_lora": (reinforced, {"algorithm": "ppo", "lora": lora("all")}),
    "greedy": (decode, {}),
    "greedy_stop": (decode, {"stop": ["w7", "w3 w"]}),
    "sampled": (decode, {"temperature": 0.8}),
    "sampled_filtered": (decode, {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.4}),
    "greedy_penalty": (decode, {"repetition_penalty": 1.2}),
    "llama_pretrain": (pretrain, {"shape": LLAMA | {"dropout": 0.2}}),
    "llama_spam": (spam, {"shape": LLAMA, "trainable": "last_two_blocks", "position": "mean"}),
    "llama_instruct_lora": (finetune_instruct, {"shape": LLAMA, "lora": lora("blocks"), "mask_instruction": True}),
    "llama_sampled": (decode, {"shape": LLAMA, "temperature": 0.8}),
    "sinusoidal_pretrain": (pretrain, {"shape": SINUSOIDAL}),
    "sinusoidal_spam": (spam, {"shape": SINUSOIDAL, "trainable": "all"}),
    "sampled_top_p": (decode, {"temperature": 1.0, "top_p": 0.7}),
}


def golden_hash(name: str, device_name: str = "cpu", batches: Sequence[Batches] = tuple(BATCHES)) -> str:
    """The hash of a case, under every setting that may not change it. The arithmetic must be exact already."""
    compute, changes = CASES[name]
    found = {}
    for setting in batches:
        digest = hashlib.sha256()
        feed(digest, compute(QuietRun(device=device_name, precision="exact", seed=5), setting, **changes))
        found[setting] = digest.hexdigest()[:16]
    assert len(set(found.values())) == 1, f"{name}: {found}"
    return found[batches[0]]


def feed(digest: Any, value: Any) -> None:
    """Add a result to a hash: weights by name, numbers as float64, text as it is."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().numpy()
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(key.encode())
            feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            feed(digest, part)
    else:
        digest.update(np.float64(value).tobytes() if isinstance(value, float) else repr(value).encode())


def set_up(device_name: str, threads: int, reference: bool) -> None:
    """Compute exactly in this process."""
    # Not fast.kernels.set_up: it chooses float32 kernels, which are not used here, by a setting that torch 2.8 lacks
    device.set_up(Run(), device.DeviceParams(device=device_name, threads=1, precision="exact", compile=False))  # type: ignore[arg-type]
    use_exact(True, threads)
    autograd.REFERENCE_ONLY = reference
    if threads > 1 and device_name == "cpu" and not reference:
        from scratchlm.arithmetic import sharing

        sharing.WORTH_A_THREAD = 1  # else these models are too small for threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reference", action="store_true", help="plain torch instead of compiled loops")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--once", action="store_true", help="with one batch size only, a third of the work")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    options = parser.parse_args()
    set_up(options.device, options.threads, options.reference)
    expected = json.loads(FILE.read_text()) if FILE.exists() else {}
    found, n_wrong = {}, 0
    for name in options.case or CASES:
        start = time.perf_counter()
        found[name] = golden_hash(name, options.device, BATCHES[:1] if options.once else BATCHES)
        right = found[name] == expected.get(name)
        n_wrong += not right
        verdict = "as committed" if right else f"DIFFERENT from {expected.get(name)}"
        print(f"{name:28} {found[name]} {time.perf_counter() - start:5.1f} s  {verdict}", flush=True)
    if options.write:
        FILE.write_text(json.dumps(expected | found, indent=1, sort_keys=True) + "\n")
    elif n_wrong:
        sys.exit(f"{n_wrong} of {len(found)} cases differ from {FILE.name}")


if __name__ == "__main__":
    main()
