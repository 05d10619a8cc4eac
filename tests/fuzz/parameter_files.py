"""Mutated parameter files through all checks of the stage preflight; tests/README.md says how to run it.

A file may be accepted, or refused with a UserError that shows one short sentence per mistake. An accepted file must
then work: DVC and each stage read it, each output has a name that the file system takes, and what the parameters
describe can be built. Anything else is a finding.
"""

import argparse
import math
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dvc.parsing import DataResolver
from dvc.repo import Repo

from scratchlm.data.catalogue import wanted_files
from scratchlm.judge.scoring import build_judge
from scratchlm.model.config import ModelParams, published_config
from scratchlm.model.generate import penalise_repetition, sample_tokens
from scratchlm.model.gpt import build_model
from scratchlm.model.lora import apply_lora
from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params, load_yaml
from scratchlm.run.pipeline import paths, resolved_stages
from scratchlm.tasks.preflight import check_together, pretrained_models
from scratchlm.tasks.spam import build_spam_classifier, varied
from scratchlm.training.optimizer import TrainingParams, build_optimizer
from scratchlm.training.schedule import learning_rate_at
from stages import (
    ablate_pretrain,
    ablate_spam,
    download,
    finetune_instruct,
    finetune_preference,
    finetune_spam,
    generate,
    judge,
    load_gpt2,
    preflight,
    pretrain,
    reinforce,
    reward_model,
    tokenize,
)
from tests.fuzz.findings import Findings, place

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = (
    download, tokenize, pretrain, ablate_pretrain, load_gpt2, finetune_spam, ablate_spam, finetune_instruct,
    finetune_preference, reward_model, reinforce, generate, judge,
)  # fmt: skip
PIPELINE = load_yaml(REPOSITORY / "dvc.yaml")
LONGEST_SENTENCE = 1500
SMALL = 1_000_000  # parameters of a model that is built
ALIASES = [f"&l{i} [" + ", ".join([f"*l{i - 1}"] * 9) + "]" for i in range(1, 10)]
LAUGHS = f"[&l0 [x], {', '.join(ALIASES)}]"  # as a text, 9^9 items
VALUES = [
    "0", "1", "-1", "2", "3", "7", "16", "256", "1000", "100000", "2147483647", "2147483648", "9223372036854775808",
    "1" + "0" * 400, "9" * 5000, "0.0", "-0.0", "0.1", "0.5", "0.9", "0.999999999999", "1.0", "1e-300", "5e-324",
    "1e300", "1e999", ".nan", ".inf", "-.inf", "NaN", "Infinity", "1_000", "0123", "0o17", "0x1F", "0b1", "1:30", "1e3",
    "1.", ".5", "+1", "١٢", "½", "yes", "no", "on", "true", "True", "FALSE", "null", "~", "", "''", '" "', '"\\0"',
    '"\\ud800"', '"\\U0010FFFF"', '"\\x1b[31m"', '"a\\nb"', "é", "ไม่", "e\u0301", "\u202e", "a" * 300, "/", "..",
    "../../etc", "$HOME", "${seed}", "${nothing}", "%s", "{}", "{a: 1}", "[]", "[1]", "[nano]", "[nano, nano]",
    "[[nano]]", "['']", "[124M, 355M]", "{null: 1}", "{1: 2}", "? [a]\n: b", "2001-12-14", "2001-99-99", "&a 1", "*a",
    "*missing", "!!str 1", "!!int x", "!!float 1", "!!binary x", "!!set {a}", "!!omap [a: 1]",
    "!!python/object:os.system x", "!!timestamp x", "!x y", "<<", "=", "|\n  text", ">-\n  text", "'", '"', "[", "{",
    "@", "`", "%", "# nothing", "cpu", "cuda", "auto", "mps", "exact", "float32", "bfloat16", "nano", "small", "124M",
    "1558M", "custom", "pretrain", "gpt2-nano", "gpt2-124M", "head", "last_block", "mean", "longest", "word", "bpe",
    "eager", "torch", "cosine", "constant", "book", "strict", "phi3", "chatml", "ollama", "llama.cpp", "reference",
    "all", "matrices", "tiny-shakespeare", "the-verdict", "{rank: 4, alpha: 8.0, layers: all}",
    "{rank: 1, alpha: 1.0e-6, layers: attention}", "{rank: 0, alpha: .nan, layers: x}", "{kind: bpe, vocab_size: 300}",
    "{kind: word}", "{kind: bpe}", "{kind: [bpe]}", "{size: nano}", "[" * 50 + "]" * 50, "[" * 300, LAUGHS,
]  # fmt: skip
LINES = [
    "---", "...", "%YAML 1.1", "%TAG ! x", "<<: *a", "<<: {seed: 1}", "<<: [1]", "? ", "- 1", ": 1", "\tseed: 1", "{}",
    "seed: 0", "1: 2", "null: 1", "? {a: b}\n: c", "model: 1", "seed: &s 5", "__class__: x", "custom: {}", "é: 1",
    "  custom: {n_layers: 1, n_heads: 1, emb_dim: 8}", "  custom: {n_layers: 1, n_heads: 3, emb_dim: 8}", "a" * 2000,
]  # fmt: skip
BYTES = [b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xc3", b"\r", b"\r\n", b"\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\x1b"]
VARIANTS = [
    "lora",
    "a",
    "A",
    "a.b",
    "a/b",
    "..",
    "-",
    "_",
    "é",
    "1",
    "null",
    "'1'",
    "a b",
    "a@b",
    "''",
    "key",
    "n" * 240,
]

Lines = list[str]


def profile(name: str) -> Lines:
    """The lines of a profile without comments and empty lines."""
    lines = (REPOSITORY / "profiles" / name).read_text(encoding="utf-8").splitlines()
    return [line.rstrip() for line in (line.partition("#")[0] for line in lines) if line.strip()]


PROFILES = [profile(path.name) for path in sorted((REPOSITORY / "profiles").glob("*.yaml"))]
SOUND: dict[str, list[str]] = {}  # by key, what the profiles have
for line in sum(PROFILES, []):
    SOUND.setdefault(line.partition(":")[0].strip(), []).append(line.partition(": ")[2])
VARIED = {  # by section of variants, the keys that they change
    "pretrain_ablations": list(ModelParams.model_fields),
    "spam_ablations": list(finetune_spam.spam.FinetuneSpamParams.model_fields),
    "preference_runs": list(finetune_preference.preference.FinetunePreferenceParams.model_fields),
    "reward_runs": list(reward_model.reward.RewardModelParams.model_fields),
    "reinforce_runs": ["reward", *reinforce.ReinforceParams.model_fields],
}


def value(draw: random.Random, lines: Lines, key: str) -> str:
    """A hostile value, one of another key, or a sound one: another profile's, or a number nearby."""
    kind = draw.random()
    if kind < 0.4:
        return draw.choice(VALUES)
    if kind < 0.5:
        return draw.choice(lines).partition(": ")[2]
    sound = draw.choice(SOUND.get(key, VALUES))
    try:
        number = float(sound) * draw.choice([-1, 0, 0.3, 0.5, 0.9, 1, 1.5, 2, 3, 10, 1e3, 1e6])
    except ValueError:
        return sound
    return str(number if "." in sound else int(number)) if math.isfinite(number) else sound


def replace_value(draw: random.Random, lines: Lines) -> None:
    i = draw.choice([i for i, line in enumerate(lines) if ": " in line] or [0])
    key = lines[i].partition(":")[0]
    lines[i] = f"{key}: {value(draw, lines, key.strip())}"


def nest_value(draw: random.Random, lines: Lines) -> None:
    i = draw.randrange(len(lines))
    key, _, old = lines[i].partition(": ")
    lines[i] = (
        f"{key}: {draw.choice(['[%s]', '{a: %s}', '{value: %s}', '&a %s', '!!str %s', '[%s, %s]']).replace('%s', old)}"
    )


def drop_line(draw: random.Random, lines: Lines) -> None:
    del lines[draw.randrange(len(lines))]


def repeat_line(draw: random.Random, lines: Lines) -> None:
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))


def swap_lines(draw: random.Random, lines: Lines) -> None:
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]


def indent_line(draw: random.Random, lines: Lines) -> None:
    i = draw.randrange(len(lines))
    lines[i] = draw.choice(["", " ", "  ", "    ", "\t"]) + lines[i].lstrip()


def rename_key(draw: random.Random, lines: Lines) -> None:
    i = draw.randrange(len(lines))
    key, _, old = lines[i].partition(":")
    new = draw.choice([key + "s", key.upper(), key.replace("_", "-"), f"'{key}", key[:-1], "  1", "  null", "  é", "~"])
    lines[i] = f"{new}:{old}"


def add_line(draw: random.Random, lines: Lines) -> None:
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(LINES))


def vary_ablations(draw: random.Random, lines: Lines) -> None:
    """Give a section of variants hostile names, and changes of real keys."""
    section = draw.choice(list(VARIED))
    start = next((i for i, line in enumerate(lines) if line.startswith(f"{section}:")), len(lines))
    keys = [draw.choice(VARIED[section]) for _ in range(draw.randint(1, 3))]
    changes = [f"{{{key}: {value(draw, lines, key)}}}" for key in keys]
    lines[start : start + 1] = [f"{section}:", *(f"  {draw.choice(VARIANTS)}: {change}" for change in changes)]


MUTATIONS: list[Callable[[random.Random, Lines], None]] = [
    *[replace_value] * 14, *[vary_ablations] * 2, nest_value, drop_line, repeat_line, swap_lines,
    indent_line, rename_key, add_line,
]  # fmt: skip


def mutated(draw: random.Random, lines: Lines) -> bytes:
    """A file with one to four mutations; some of them in its bytes."""
    lines = list(lines)
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3, 4])):
        draw.choice(MUTATIONS)(draw, lines)
    data = ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    if draw.random() < 0.04:
        i = draw.randrange(len(data))
        data = data[:i] + draw.choice([*BYTES, b""]) + data[draw.choice([i, i + 1, len(data)]) :]
    return data


def use(values: Any, params: Any, repo: Repo) -> None:
    """Do with accepted `values` of params.yaml, in the DVC repository `repo`, what the stages begin with."""
    sections = [check_params(values, stage.Params, source="params.yaml") for stage in STAGES]
    assert all(getattr(params, key) == part for section in sections for key, part in section)
    DataResolver(repo, repo.root_dir, PIPELINE).resolve()
    for stage in resolved_stages(PIPELINE, values).values():
        for target in map(Path, paths([*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])])):
            (Path(repo.root_dir) / f".{target.name}.12345678.tmp").touch()
    wanted_files(params.sources, params.gpt2_sizes, params.pretrained)
    if params.judge.backend == "reference":
        build_judge(params.judge)
    logits, draws = (
        torch.linspace(-30, 30, 64).expand(4, 64),
        torch.tensor([0.0, 0.3, 0.9, 0.999999], dtype=torch.float64),
    )
    sampling = params.generate.sampling
    penalised = penalise_repetition(logits, logits > 0, sampling.repetition_penalty)
    assert int(sample_tokens(penalised, sampling, draws).min()) >= 0
    finetunings = ("finetune_spam", "finetune_instruct", "finetune_preference", "reward_model", "reinforce")
    for section in ("pretrain", *finetunings):
        rates_are_sound(getattr(params, section))
    for model in pretrained_models(params).values():
        assert model.config(300).n_parameters > 0
    base = params.model.config(300) if params.finetune_spam.base == "pretrain" else published_config("nano")
    if base.n_parameters <= SMALL:
        models_can_be_built(params, base)


def rates_are_sound(training: TrainingParams) -> None:
    n_steps = training.warmup_steps + 100
    for step in {0, training.warmup_steps - 1, training.warmup_steps, n_steps - 1} - {-1}:
        rate = learning_rate_at(step, n_steps, training)
        assert math.isfinite(rate) and 0 <= rate <= training.learning_rate * (1 + 1e-12), rate


def models_can_be_built(params: Any, base: Any) -> None:
    """Build what each training begins with, and take one step with it."""
    spam = params.finetune_spam
    for variant in (spam, *(varied(spam, params.spam_ablations, name) for name in params.spam_ablations)):
        backbone = build_model(base.model_copy(update={"dropout": variant.dropout}), seed=1)
        one_step(build_spam_classifier(backbone, variant, params.seed), variant, torch.tensor([[1, 2, 3]]))
    assistant = build_model(base, seed=1)
    apply_lora(assistant, params.finetune_instruct.lora, params.seed)
    one_step(assistant, params.finetune_instruct, torch.tensor([[1, 2, 3]]))


def one_step(model: Any, training: TrainingParams, tokens: torch.Tensor) -> None:
    optimizer = build_optimizer(model, training)
    is_gpt = hasattr(model, "token_embedding")
    scores = model(tokens[:, : base_length(model)]) if is_gpt else model(tokens[:, :1], torch.tensor([1]))
    scores.float().sum().backward()
    optimizer.step()


def base_length(model: Any) -> int:
    return min(3, model.config.context_length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the findings")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file")
    parser.add_argument("--used", type=float, default=0.2, help="the share of the accepted files that is used")
    own = parser.parse_args()
    findings, counts = Findings(own.folder), Counter[str]()
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    shutil.copy(REPOSITORY / "dvc.yaml", scratch)
    path = scratch / "params.yaml"
    repo = Repo.init(str(scratch), no_scm=True)
    start = time.monotonic()
    for number in range(own.first, own.first + own.files):
        draw = random.Random(f"{own.seed} {number}")
        data = mutated(draw, draw.choice(PROFILES))
        path.write_bytes(data)
        began, outcome = time.monotonic(), "accepted"
        try:
            values = load_yaml(path)
            params = check_params(values, preflight.Params, source="params.yaml", whole=True)
            check_together(params)
            if draw.random() < own.used:
                outcome = "accepted and used"
                use(values, params, repo)
        except UserError as error:
            sentences = str(error).split("\n")
            if outcome != "accepted":
                findings.add(f"refused-later-{place(error)}", data, f"file {number}: {error}")
            elif not all(0 < len(sentence) <= LONGEST_SENTENCE for sentence in sentences):
                findings.add(
                    f"no-sentence-{place(error)}", data, f"file {number}: {max(map(len, sentences))} characters"
                )
            outcome = "refused"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of Rust is no Exception
            findings.add(f"{outcome.split()[-1]}-{place(error)}", data, f"file {number}: {error!r}")
        counts[outcome] += 1
        for left in scratch.glob(".*.tmp"):
            left.unlink()
        if (seconds := time.monotonic() - began) > 5:
            findings.add("slow", data, f"file {number}: {seconds:.0f} s")
        if (number + 1) % 1000 == 0:
            print(
                f"{number + 1}: {dict(counts)}, findings {findings.kinds}, {time.monotonic() - start:.0f} s", flush=True
            )
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
