import re
from pathlib import Path
from typing import get_args

import pytest

from scratchlm.data.catalogue import (
    CATALOGUE,
    PUBLIC,
    File,
    PretrainedName,
    Source,
    SourcesParams,
    name_in,
    names_for,
    source_named,
    source_of,
    wanted_files,
)
from scratchlm.data.own_data import COLUMNS
from scratchlm.data.sources import fetch
from scratchlm.model.config import PRETRAINED
from scratchlm.run.errors import UserError
from scratchlm.run.params import check_params

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLE = SourcesParams(
    corpus="sample-stories", messages="sample-messages", instructions="sample-instructions",
    preferences="sample-preferences", vocabulary="gpt2-nano",
)  # fmt: skip
REAL = SourcesParams(
    corpus="the-verdict", messages="sms-spam", instructions="instruction-data", preferences="instruction-preference",
    vocabulary="gpt2-124M",
)  # fmt: skip


def names(sources: SourcesParams, sizes: list) -> list[str]:
    return [f"{source.name}/{file.name}" for source, file in wanted_files(sources, sizes, [])]


def test_of_a_vocabulary_only_its_two_files_are_wanted() -> None:
    assert names(REAL, []) == [
        "the-verdict/the-verdict.txt", "sms-spam/SMSSpamCollection", "instruction-data/instruction-data.json",
        "instruction-preference/instruction-data-with-preference.json", "gpt2-124M/encoder.json", "gpt2-124M/vocab.bpe",
    ]  # fmt: skip


def test_a_checkpoint_is_wanted_once_with_its_vocabulary() -> None:
    files = names(SAMPLE, ["nano", "355M"])
    assert len(files) == len(set(files)) == 4 + 5 + 5
    assert "gpt2-nano/vocab.bpe" in files
    assert "gpt2-355M/model.ckpt.data-00000-of-00001" in files


def test_a_pretrained_model_is_wanted_whole() -> None:
    assert [file.name for _, file in wanted_files(SAMPLE, [], ["smollm2-135m"]) if file.wheel] == [
        "SmolLM2-135M-Instruct.Q4_1.gguf"
    ]
    assert len(wanted_files(SAMPLE, [], ["smollm2-360m"])) == len(wanted_files(SAMPLE, [], [])) + 4
    assert set(get_args(PretrainedName)) == set(PRETRAINED) <= set(CATALOGUE)


def test_every_name_that_params_allow_is_in_the_catalogue() -> None:
    named = {source.name for source in CATALOGUE.values() if source.purpose and source.name not in PUBLIC}
    assert named == {name for purpose in COLUMNS for name in names_for(purpose)}
    assert set(get_args(SourcesParams.model_fields["vocabulary"].annotation)) <= set(CATALOGUE)
    for size in ("nano", "124M", "355M", "774M", "1558M"):
        assert {file.name for file in CATALOGUE[f"gpt2-{size}"].files} == {
            "hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "encoder.json", "vocab.bpe",
        }  # fmt: skip


def test_an_unknown_source_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError) as caught:
        check_params(REAL.model_dump() | {"corpus": "verdict"}, SourcesParams, source="params.yaml")
    assert str(caught.value) == (
        f"params.yaml: corpus is 'verdict': must be {', '.join(names_for('corpus'))}, or your own data: put it below "
        "data/mine, then `scratchlm sources add FILE --as corpus`"
    )


@pytest.mark.parametrize(
    ("entry", "source", "name"),
    [
        ("the-verdict", "the-verdict", "the-verdict"),
        ("no-longer-there", "own-corpus", "no-longer-there"),
        ({"path": "data/mine/fineweb-edu-10bt.jsonl"}, "own-corpus", "data/mine/fineweb-edu-10bt.jsonl"),
        ({"manifest": "data/mine/fineweb-edu-10bt.jsonl"}, "fineweb-edu-10bt", "data/mine/fineweb-edu-10bt.jsonl"),
        ({"manifest": "data/mine/c.jsonl"}, "own-corpus", "data/mine/c.jsonl"),
    ],
)
def test_an_entry_of_params_means_one_source(entry: object, source: str, name: str) -> None:
    assert (source_of("corpus", entry).name, name_in(entry)) == (source, name)
    if source != "own-corpus" or isinstance(entry, dict):
        checked = check_params(REAL.model_dump() | {"corpus": entry}, SourcesParams, source="params.yaml")
        assert (checked.source("corpus").name, checked.corpus_name) == (source, name)
        assert source_named(source) == source_of("corpus", entry)


ENTRIES = {f"{source.name}/{file.name}": (source, file) for source in CATALOGUE.values() for file in source.files}


def is_sample(file: File) -> bool:
    return file.addresses[0].startswith("data/sample/")


def test_a_public_corpus_in_params_is_answered_with_the_command_that_pins_it() -> None:
    with pytest.raises(UserError) as caught:
        check_params(REAL.model_dump() | {"corpus": "tinystories"}, SourcesParams, source="params.yaml")
    assert str(caught.value) == (
        "params.yaml: corpus is 'tinystories': must be pinned first: run `scratchlm sources pin tinystories`, which "
        "also writes this entry"
    )


def test_the_catalogue_holds_what_the_profiles_name() -> None:
    assert set(CATALOGUE) == {
        *("tinystories", "fineweb-edu-10bt", "gutenberg-en"),
        *("the-verdict", "tiny-shakespeare", "sms-spam", "imdb", "instruction-data"),
        *("gpt2-124M", "gpt2-355M", "gpt2-774M", "gpt2-1558M", "smollm2-135m", "smollm2-360m"),
        *("sample-stories", "sample-messages", "sample-instructions", "gpt2-nano"),
        *("sample-preferences", "instruction-preference"),
    }


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_source_says_what_it_is_and_whose(name: str) -> None:
    source = CATALOGUE[name]
    assert source.name == name
    assert all([source.description, source.licence, source.citation, source.files])
    assert len({file.name for file in source.files}) == len(source.files)


@pytest.mark.parametrize(("source", "file"), ENTRIES.values(), ids=ENTRIES)
def test_a_catalogue_entry_is_well_formed(source: Source, file: File) -> None:
    assert file.addresses
    assert len(set(file.addresses)) == len(file.addresses)
    for address in file.addresses:
        if file.wheel:
            assert re.fullmatch(r"pip://[a-z0-9-]+==[\d.]+", address)
            assert re.fullmatch(r"[0-9a-f]{64}", file.wheel.sha256)
            assert file.wheel.member.endswith(f"/{file.name}")
            continue
        assert address.startswith(("https://", "data/sample/"))
        assert address.endswith((file.archive or file.name, "sms%2Bspam%2Bcollection.zip"))
    for name in (source.name, file.name, file.archive or "-"):
        assert re.fullmatch(r"[\w.+-]+", name)
    if file.sha256 is None:
        assert source.name in ("gpt2-355M", "gpt2-774M", "gpt2-1558M", *PUBLIC)
    else:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert file.size_bytes is not None


@pytest.mark.parametrize(
    ("size", "layers", "width"),
    [("124M", 12, 768), ("355M", 24, 1024), ("774M", 36, 1280), ("1558M", 48, 1600)],
)
def test_the_size_of_the_weights_is_four_bytes_per_parameter(size: str, layers: int, width: int) -> None:
    blocks = layers * (12 * width**2 + 13 * width)
    parameters = (50257 + 1024) * width + blocks + 2 * width
    weights = {file.name: file for file in CATALOGUE[f"gpt2-{size}"].files}
    assert weights["model.ckpt.data-00000-of-00001"].size_bytes == 4 * parameters


def test_the_size_of_smollm2s_weights_is_two_bytes_per_parameter_and_a_header() -> None:
    n_parameters = PRETRAINED["smollm2-360m"].n_parameters
    assert n_parameters == 361_821_120  # as its model card says
    weights = {file.name: file for file in CATALOGUE["smollm2-360m"].files}["model.safetensors"]
    assert weights.size_bytes is not None
    assert 0 < weights.size_bytes - 2 * n_parameters < 200 * 290  # a line for each of 290 tensors


@pytest.mark.parametrize(
    ("source", "file"),
    [pytest.param(*entry, id=name) for name, entry in ENTRIES.items() if is_sample(entry[1])],
)
def test_the_sample_in_git_is_what_the_catalogue_pins(
    source: Source, file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    fetch(source, file, tmp_path, None)
