import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from scratchlm.data.catalogue import PUBLIC
from scratchlm.data.manifest import PinnedFile, write_manifest
from scratchlm.model.gpt import parameter_count
from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params, load_yaml
from scratchlm.tasks.preflight import check_together
from scratchlm.tasks.variants import RESERVED
from stages.preflight import Params

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLE = load_yaml(REPOSITORY / "profiles" / "sample.yaml")
BOOK = REPOSITORY / "profiles" / "book.yaml"


def check(changes: dict[str, Any]) -> None:
    """Check the sample's parameters with `changes`: dotted key to value. The variants follow unless they change."""
    values = copy.deepcopy(SAMPLE)
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
    if not any(key.startswith("variants") for key in changes):
        values["variants"] = {"base": values["finetune_instruct"]["base"], "instruct": "finetune_instruct"}
    check_together(check_params(values, Params, source="params.yaml", whole=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"device": "auto"},
        {"gpt2_sizes": [], "finetune_spam.base": "pretrain", "finetune_instruct.base": "pretrain"},
        {"tokenizer": {"kind": "word"}, "gpt2_sizes": [], "finetune_spam.base": "pretrain",
         "finetune_instruct.base": "pretrain"},
        {"gpt2_sizes": ["124M", "355M"], "sources.vocabulary": "gpt2-124M", "finetune_spam.base": "gpt2-124M",
         "finetune_instruct.base": "gpt2-355M", "generate.max_new_tokens": 1024, "finetune_spam.padding": 1024},
        {"evaluation.context_length": 256, "finetune_spam.padding": 256, "generate.max_new_tokens": 256},
        {"model.size": "custom", "model.custom": {"n_layers": 2, "n_heads": 3, "emb_dim": 6}},
        {"gpt2_sizes": [], "pretrained": ["smollm2-135m"], "sources.vocabulary": "smollm2-135m",
         "tokenizer": {"kind": "bpe", "vocab_size": 500}, "tokenize.finetuning_tokenizer": "vocabulary",
         "finetune_spam.base": "smollm2-135m", "finetune_instruct.base": "smollm2-135m"},
        {"gpt2_sizes": [], "pretrained": ["smollm2-135m"], "sources.vocabulary": "smollm2-135m",
         "finetune_spam.base": "smollm2-135m", "finetune_instruct.base": "pretrain"},
        {"preference_runs": {}, "reward_runs": {}, "reinforce_runs": {}},
        {"reinforce_runs": {"ppo": {"algorithm": "ppo", "reward": "models/reward_model/bradley_terry",
                                    "unfinished_reward": -3.0},
                            "one": {"algorithm": "ppo", "reward": "tokens/preferences", "responses_per_prompt": 1}}},
        {"reinforce_runs": {"long": {"reward": "tokens/preferences", "max_new_tokens": 256}}},
        {"variants": {"instruct": "finetune_instruct", "rewarded": "reinforce/grpo"}},
        {"reward_runs": {"a": {}, "thin": {"lora": {"rank": 128, "alpha": 1.0, "layers": "all"}, "dropout": 0.1}}},
        {"preference_runs": {}},
        {"variants": {"instruct": "finetune_instruct"}},
        {"variants": {"instruct": "finetune_instruct", "preferred": "finetune_preference/dpo", "other": "pretrain"}},
        {"preference_runs": {"ipo": {"loss": "ipo", "beta": 0.01}, "smooth": {"label_smoothing": 0.1}}},
        {"pretrain_ablations": {"llama": {"position": "rope", "norm": "rms", "feed_forward": "swiglu"}, "same": {}}},
    ],
)  # fmt: skip
def test_what_fits_together_passes(changes: dict[str, Any]) -> None:
    check(changes)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it = {"compile": True, "precision": "float32", "threads": 2}
    check(compile_it)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="^compile is true, but this machine lacks the system's compiler no-such-comp"):
        check(compile_it)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model.size": "custom", "model.custom": {"n_layers": 2, "n_heads": 5, "emb_dim": 64}},
            "params.yaml: model.custom emb_dim 64 cannot be split over 5 heads; choose n_heads among the divisors "
            "of emb_dim",
        ),
        (
            {"model.size": "custom"},
            "params.yaml: model size: custom needs a section custom: {n_layers, n_heads, emb_dim}, and only it does",
        ),
        (
            {"spam_ablations": {"x" * 101: {}, "a.b": {}}},
            f"spam_ablations has the name '{'x' * 101}'; use at most 100 letters, digits, _ and - only\n"
            "spam_ablations has the name 'a.b'; use at most 100 letters, digits, _ and - only",
        ),
        (
            {"tokenize.instructions.prompt_style": "chatml"},
            "tokenize.instructions.prompt_style is chatml, whose special tokens the tokenizer of the instructions "
            "(gpt2-nano) lacks; choose alpaca or phi3",
        ),
        (
            {"pretrain_ablations": {"a/b": {}}},
            "pretrain_ablations has the name 'a/b'; use at most 100 letters, digits, _ and - only",
        ),
        (
            {"preference_runs": {"": {}}},
            "preference_runs has the name ''; use at most 100 letters, digits, _ and - only",
        ),
        (
            {"reward_runs": {"a b": {}}},
            "reward_runs has the name 'a b'; use at most 100 letters, digits, _ and - only",
        ),
        (
            {"reward_runs": {"thin": {"lora": {"rank": 129, "alpha": 1.0, "layers": "all"}}}},
            "reward_runs.thin.lora.rank is 129, but gpt2-nano has a width of 128; lower it",
        ),
        (
            {"preference_runs": {"ipo": {"loss": "ipo", "label_smoothing": 0.1}}},
            "preference_runs.ipo: label_smoothing is 0.1, but loss ipo has none; set it to 0.0",
        ),
        (
            {"preference_runs": {"thin": {"lora": {"rank": 129, "alpha": 1.0, "layers": "all"}}}},
            "preference_runs.thin.lora.rank is 129, but gpt2-nano has a width of 128; lower it",
        ),
        (
            {"pretrain_ablations": {"rope": {"positon": "rope"}}},
            "pretrain_ablations.rope: unknown key positon (did you mean position?); allowed are context_length, "
            "dropout, position, norm, feed_forward, qkv_bias, bias, tied_head, initialisation, attention, size, custom",
        ),
        (
            {"pretrain_ablations": {"rope": {"position": "turned"}}},
            "pretrain_ablations.rope: position is 'turned': must be 'learned', 'sinusoidal' or 'rope'",
        ),
        (
            {
                "pretrain_ablations": {
                    "narrow": {
                        "position": "rope",
                        "size": "custom",
                        "custom": {"n_layers": 1, "n_heads": 2, "emb_dim": 6},
                    }
                }
            },
            "pretrain_ablations.narrow: position rope needs pairs of numbers, and the width of a head is 3; make it "
            "even",
        ),
        (
            {"pretrain_ablations": {"short": {"context_length": 100}}},
            "evaluation.context_length is 128, but pretrain_ablations.short has a context of 100 tokens; lower it to "
            "that or less",
        ),
        (
            {"finetune_spam.base": "gpt2-124M"},
            "finetune_spam.base is 'gpt2-124M'; allowed are pretrain, gpt2-nano; to use another GPT-2, "
            "add its size to gpt2_sizes",
        ),
        (
            {"finetune_instruct.base": "gpt2"},
            "finetune_instruct.base is 'gpt2'; allowed are pretrain, gpt2-nano; to use another GPT-2, "
            "add its size to gpt2_sizes",
        ),
        (
            {"tokenizer": {"kind": "bpe", "vocab_size": 1024}},
            "gpt2_sizes has nano, whose vocabulary of 1024 tokens differs from the tokenizer's "
            "(bpe: trained on the corpus); set tokenizer.kind to gpt2 and sources.vocabulary to gpt2-nano, "
            "or remove the size",
        ),
        (
            {"sources.vocabulary": "gpt2-124M"},
            "gpt2_sizes has nano, whose vocabulary of 1024 tokens differs from the tokenizer's (gpt2: gpt2-124M); "
            "set tokenizer.kind to gpt2 and sources.vocabulary to gpt2-nano, or remove the size",
        ),
        (
            {"gpt2_sizes": ["nano", "355M"]},
            "gpt2_sizes has 355M, whose vocabulary of 50257 tokens differs from the tokenizer's (gpt2: gpt2-nano); "
            "set tokenizer.kind to gpt2 and sources.vocabulary to gpt2-124M, or remove the size",
        ),
        (
            {"pretrained": ["smollm2-135m"], "finetune_spam.base": "smollm2-135m"},
            "finetune_spam.base is 'smollm2-135m', whose vocabulary is smollm2-135m, but messages and instructions "
            "have gpt2-nano; set tokenize.finetuning_tokenizer to vocabulary and sources.vocabulary to smollm2-135m, "
            "or choose another base",
        ),
        (
            {
                "gpt2_sizes": [],
                "finetune_spam.base": "pretrain",
                "finetune_instruct.base": "pretrain",
                "tokenizer": {"kind": "bpe", "vocab_size": 500},
                "tokenize.finetuning_tokenizer": "vocabulary",
            },
            "\n".join(
                f"{section}.base is 'pretrain', whose vocabulary is the corpus' own, but messages and instructions "
                "have gpt2-nano; set tokenize.finetuning_tokenizer to corpus, or choose another base"
                for section in ("finetune_spam", "finetune_instruct")
            ),
        ),
        (
            {"pretrained": ["smollm2-135m"] * 2},
            "pretrained is ['smollm2-135m', 'smollm2-135m']; each name may occur once; remove the repeated one",
        ),
        (
            {"evaluation.context_length": 257, "model.context_length": 512},
            "evaluation.context_length is 257, but gpt2-nano has a context of 256 tokens; lower it to that or less",
        ),
        (
            {"model.context_length": 100},
            "evaluation.context_length is 128, but pretrain has a context of 100 tokens; lower it to that or less",
        ),
        (
            {"finetune_spam.padding": 257},
            "finetune_spam.padding is 257, but gpt2-nano has a context of 256 tokens; lower it to that or less",
        ),
        (
            {"generate.max_new_tokens": 257},
            "generate.max_new_tokens is 257, but gpt2-nano has a context of 256 tokens; lower it to that or less",
        ),
        (
            {"generate.max_new_tokens": 200, "model.context_length": 128, "variants.own": "pretrain"},
            "generate.max_new_tokens is 200, but pretrain has a context of 128 tokens; lower it to that or less",
        ),
        (
            {"variants.base": "pretrain"},
            "variants.base is 'pretrain', but finetune_instruct.base is 'gpt2-nano'; make them equal, or rename the "
            "variant",
        ),
        (
            {"variants.ipo": "finetune_preference/ipo"},
            "variants.ipo is 'finetune_preference/ipo'; allowed are pretrain, gpt2-nano, finetune_instruct, "
            "finetune_preference/dpo, reinforce/grpo; choose one of them, remove the variant, or add the run that "
            "makes it",
        ),
        *(
            (
                {"reinforce_runs": {"a": {"reward": folder}}, "reward_runs": {"thin": {}}},
                f"reinforce_runs.a.reward is {folder!r}; allowed are tokens/preferences, models/reward_model/thin; "
                "choose one, or add the reward model to reward_runs",
            )
            for folder in ("models/reward_model/bradley_terry", "models/finetune_instruct", "")
        ),
        (
            {"reinforce_runs": {"a": {"reward": "tokens/preferences", "max_new_tokens": 257}}},
            "reinforce_runs.a.max_new_tokens is 257, but gpt2-nano has a context of 256 tokens; lower it to that or "
            "less",
        ),
        (
            {"reinforce_runs": {}, "reinforce.max_new_tokens": 257},
            "reinforce.max_new_tokens is 257, but gpt2-nano has a context of 256 tokens; lower it to that or less",
        ),
        (
            {"reinforce_runs": {"a": {"reward": "models/reward_model/bradley_terry"}}},
            "reinforce_runs.a.unfinished_reward is 0.0, but a reward model gives good responses a mean of 0, so the "
            "policy would learn not to end; set it well below 0, such as -3.0",
        ),
        (
            {"reinforce_runs": {"a b": {"reward": "tokens/preferences"}}},
            "reinforce_runs has the name 'a b'; use at most 100 letters, digits, _ and - only",
        ),
        (
            {"reinforce_runs": {"a": {"reward": "tokens/preferences", "temperature": 0.0}}},
            "reinforce_runs.a: temperature is 0, so all responses to a prompt are the same; set it above 0, such as "
            "1.0",
        ),
        (
            {"reinforce_runs": {"a": {"algorithm": "ppo"}}},
            "params.yaml: reinforce_runs.a.reward is missing; every parameter must be given, profiles/ shows complete "
            "files",
        ),
        (
            {
                "reinforce_runs": {
                    "thin": {"reward": "tokens/preferences", "lora": {"rank": 129, "alpha": 1.0, "layers": "all"}}
                }
            },
            "reinforce_runs.thin.lora.rank is 129, but gpt2-nano has a width of 128; lower it",
        ),
        (
            {"variants": {"instruct": "finetune_instruct", "a/b": "pretrain"}},
            "variants has the name 'a/b'; use at most 100 letters, digits, _ and - only",
        ),
        (
            {
                "variants.own": "pretrain",
                "tokenizer": {"kind": "bpe", "vocab_size": 500},
                "gpt2_sizes": [],
                "pretrained": ["smollm2-135m"],
                "sources.vocabulary": "smollm2-135m",
                "tokenize.finetuning_tokenizer": "vocabulary",
                "finetune_spam.base": "smollm2-135m",
                "finetune_instruct.base": "smollm2-135m",
                "variants.base": "smollm2-135m",
            },
            "variants.own is 'pretrain', whose vocabulary is the corpus' own, but messages and instructions have "
            "smollm2-135m; set tokenize.finetuning_tokenizer to corpus, or choose another base",
        ),
        *(
            (
                {"variants": variants},
                "params.yaml: variants must have instruct: finetune_instruct, which the others are compared with and "
                "whose tasks give the judge's controls; add it",
            )
            for variants in ({}, {"base": "gpt2-nano"}, {"instruct": "gpt2-nano"})
        ),
        *(
            (
                {f"variants.{name}": "gpt2-nano"},
                f"params.yaml: variants has the name '{name}', but names that begin with {', '.join(RESERVED)} "
                "have another meaning in the judge's metrics; choose another",
            )
            for name in ("control_empty", "repeat_1", "second_base", "reordered", "pairwise", "judge", "trusted")
        ),
        (
            {"judge": {**load_yaml(BOOK)["judge"], "pairwise": [["base", "instruct"], ["instruct", "dpo"]]}},
            "judge.pairwise has 'dpo'; allowed are the variants base, instruct; choose two of them",
        ),
        ({"variants.own": 7}, "params.yaml: variants.own is 7: must be a valid string"),
        ({"variants": ["base"]}, "params.yaml: variants is ['base']: must be a valid dictionary"),
        (
            {"generate.max_new_tokens": 200, "finetune_instruct.base": "pretrain", "model.context_length": 128},
            "generate.max_new_tokens is 200, but pretrain has a context of 128 tokens; lower it to that or less",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        check(changes)
    assert str(caught.value) == sentence


def test_every_mismatch_is_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        check({"finetune_spam.base": "x", "finetune_instruct.base": "y", "evaluation.context_length": 300})
    keys = [line.split()[0] for line in str(caught.value).split("\n")]
    assert keys == ["finetune_spam.base", "finetune_instruct.base", "evaluation.context_length",
                    "evaluation.context_length"]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_where_there_is_none_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"device is 'cuda', but torch finds only .*cpu here; set device to one of"):
        check({"device": "cuda"})


def test_a_manifest_that_was_not_written_yet_is_answered_with_the_command_that_writes_it() -> None:
    for name, command in (("tinystories", "tinystories"), ("ours", "ADDRESS --output data/mine/ours.jsonl")):
        manifest = f"data/mine/{name}.jsonl"
        with pytest.raises(UserError) as caught:
            check({"sources.corpus": {"manifest": manifest}, "tokenize.corpus.split": "documents"})
        assert str(caught.value) == (
            f"sources.corpus.manifest is {manifest}, which does not exist; write it with "
            f"`scratchlm sources pin {command}`"
        )


@pytest.mark.parametrize("profile", sorted((REPOSITORY / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_fits_together(profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = load_yaml(profile) | {"device": "cpu"}
    params = check_params(values, Params, source=profile.name, whole=True)
    if params.sources.pinned:  # as `scratchlm sources pin` writes it, but for the hashes
        monkeypatch.chdir(tmp_path)
        (public,) = [source for source in PUBLIC.values() if source.manifest == params.sources.pinned.manifest]
        files = [PinnedFile(it.addresses[0], it.size_bytes or 0, "0" * 64, "parquet", "text") for it in public.files]
        write_manifest(Path(public.manifest), files)
    check_together(params)


SPAM, INSTRUCT = "finetune_spam", "finetune_instruct"


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"model.context_length": 10**9}, "params.yaml: model.context_length is 1000000000: must be less"),
        ({"model.context_length": 10**6}, "pretrain of pretrain ("),
        ({"model.size": "custom", "model.custom": {"n_layers": 10**6, "n_heads": 1, "emb_dim": 8}},
         "params.yaml: model.custom.n_layers is 1000000: must be less than or equal"),
        ({"model.size": "custom", "model.custom": {"n_layers": 900, "n_heads": 1, "emb_dim": 90_000}},
         "pretrain of pretrain (87,48"),
        ({"pretrain_ablations": {"large": {"size": "custom",
                                           "custom": {"n_layers": 900, "n_heads": 1, "emb_dim": 90_000}}}},
         "pretrain of pretrain_ablations.large (87,48"),
        ({"pretrain_ablations": {"long": {"context_length": 10**6}}, "sources.corpus": "the-verdict"},
         "pretrain_ablations.long.context_length is 1000000, but the-verdict has at most 20479 tokens; lower it"),
        ({"finetune_spam.base": "pretrain", "model.size": "custom", "finetune_spam.lora":
          {"rank": 8, "alpha": 1.0, "layers": "all"},
          "model.custom": {"n_layers": 900, "n_heads": 1, "emb_dim": 90_000}}, "finetune_spam of pretrain (87,48"),
        ({"model.context_length": 10**6 - 1, "evaluation.context_length": 10**6 - 2,
          "model.size": "custom", "model.custom": {"n_layers": 1, "n_heads": 1, "emb_dim": 1}, "pretrain.stride": 1,
          "pretrain.max_micro_batch_size": 1, "sources.corpus": "the-verdict"},
         "model.context_length is 999999, but the-verdict has at most 20479 tokens; lower it"),
        ({"pretrain.epochs": 1e300}, "params.yaml: pretrain.epochs is 1e+300: must be less than or equal to 100000"),
        ({"pretrain.warmup_steps": 10**9}, "pretrain has at most 244 steps over sample-stories, even if each"),
        ({"pretrain.batch_size": 10**9}, "pretrain has at most 0 steps over sample-stories"),
        ({"pretrain.stride": 10**9}, "pretrain has at most 0 steps over sample-stories"),
        ({"pretrain.sample_tokens": 10**9}, "params.yaml: pretrain.sample_tokens is 1000000000: must be less"),
        ({"pretrain.learning_rate": 1e-300}, "params.yaml: pretrain.learning_rate is 1e-300: must be greater"),
        ({"pretrain.learning_rate": 1e300}, "params.yaml: pretrain.learning_rate is 1e+300: must be less"),
        ({"finetune_spam.max_grad_norm": 1e-300}, "params.yaml: finetune_spam.max_grad_norm is 1e-300: must be gr"),
        ({"finetune_instruct.beta1": 1 - 2**-53}, "params.yaml: finetune_instruct.beta1 is 0.9999999999999999: must"),
        ({"finetune_instruct.beta2": 1 - 2**-53}, "params.yaml: finetune_instruct.beta2 is 0.9999999999999999: must"),
        *(({f"{section}.dropout": 0.9999999}, f"params.yaml: {section}.dropout is 0.9999999: must be less")
          for section in ("model", SPAM, INSTRUCT)),
        *(({f"{section}.lora": {"rank": 10**25, "alpha": 1.0, "layers": "all"}}, f"params.yaml: {section}.lora.rank is")
          for section in (SPAM, INSTRUCT)),
        *(({f"{section}.lora": {"rank": 129, "alpha": 1.0, "layers": "all"}},
           f"{section}.lora.rank is 129, but gpt2-nano has a width of 128; lower it") for section in (SPAM, INSTRUCT)),
        ({"finetune_spam.lora": {"rank": 1, "alpha": float("inf"), "layers": "all"}},
         "params.yaml: finetune_spam.lora.alpha is inf: must be less than or equal to"),
        ({"tokenize.corpus.split": "hash"}, "params.yaml: tokenize.corpus.split is 'hash': must be 'position' or"),
        ({"tokenize.corpus.shard_tokens": 1}, "params.yaml: tokenize.corpus.shard_tokens is 1: must be greater"),
        *(({f"generate.sampling.{key}": value}, f"params.yaml: generate.sampling.{key} is {value}: must be ")
          for key, value in [("temperature", 1e-300), ("temperature", 0.0009), ("temperature", float("inf")),
                             ("top_p", 1e-300), ("top_p", 1e-9), ("repetition_penalty", 1e-300),
                             ("repetition_penalty", float("inf")), ("repetition_penalty", float("nan"))]),
    ],
)  # fmt: skip
def test_what_no_machine_can_do_and_what_trains_nothing_is_refused(changes: dict[str, Any], start: str) -> None:
    with pytest.raises(UserError) as caught:
        check(changes)
    lines = str(caught.value).split("\n")
    assert any(line.startswith(start) for line in lines), lines


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_the_parameters_of_a_configuration_are_those_of_its_model(
    tiny_gpt: Any, tied_head: bool, qkv_bias: bool
) -> None:
    model = tiny_gpt(tied_head=tied_head, qkv_bias=qkv_bias, n_layers=3)
    assert model.config.n_parameters == parameter_count(model)


def test_a_training_that_fits_only_with_recomputed_activations_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"sources.corpus": "tiny-shakespeare", "model.context_length": 20_000, "pretrain.stride": 20_000}
    for n_bytes, shown in ((int(4.31 * 2**30), "4.3"), (2**30, "1.0")):  # the first: a little less than it needs
        monkeypatch.setattr("scratchlm.tasks.memory.memory_bytes", lambda device, n=n_bytes: n)
        sentence = rf"^pretrain of pretrain \(.*\) needs at least 4.4 GiB .* has {shown}; .* checkpoint_activations$"
        with pytest.raises(UserError, match=sentence):
            check(long | {"pretrain.warmup_steps": 1})
    check(long | {"pretrain.warmup_steps": 1, "pretrain.checkpoint_activations": True})
