import re
from pathlib import Path

import pytest

from scratchlm.data.catalogue import CATALOGUE, SourcesParams, wanted_files
from scratchlm.run.errors import UserError
from scratchlm.run.files import sha256_of
from scratchlm.run.params import check_params

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLE = SourcesParams(
    corpus="sample-stories", messages="sample-messages", instructions="sample-instructions", vocabulary="gpt2-nano"
)
REAL = SourcesParams(
    corpus="the-verdict", messages="sms-spam", instructions="instruction-data", vocabulary="gpt2-124M"
)  # fmt: skip


def names(sources: SourcesParams, sizes: list) -> list[str]:
    return [f"{source.name}/{file.name}" for source, file in wanted_files(sources, sizes)]


def test_of_a_vocabulary_only_its_two_files_are_wanted() -> None:
    assert names(REAL, []) == [
        "the-verdict/the-verdict.txt", "sms-spam/SMSSpamCollection", "instruction-data/instruction-data.json",
        "gpt2-124M/encoder.json", "gpt2-124M/vocab.bpe",
    ]  # fmt: skip


def test_a_checkpoint_is_wanted_once_with_its_vocabulary() -> None:
    files = names(SAMPLE, ["nano", "355M"])
    assert len(files) == len(set(files)) == 3 + 5 + 5
    assert "gpt2-nano/vocab.bpe" in files
    assert "gpt2-355M/model.ckpt.data-00000-of-00001" in files


def test_every_name_that_params_allow_is_in_the_catalogue() -> None:
    for name, field in SourcesParams.model_fields.items():
        assert set(field.annotation.__args__) <= set(CATALOGUE), name
    for size in ("nano", "124M", "355M", "774M", "1558M"):
        assert {file.name for file in CATALOGUE[f"gpt2-{size}"].files} == {
            "hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "encoder.json", "vocab.bpe",
        }  # fmt: skip


def test_an_unknown_source_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError) as caught:
        check_params(REAL.model_dump() | {"corpus": "verdict"}, SourcesParams, source="params.yaml")
    *others, last = map(repr, SourcesParams.model_fields["corpus"].annotation.__args__)
    assert str(caught.value) == f"params.yaml: corpus is 'verdict': must be {', '.join(others)} or {last}"


@pytest.mark.parametrize("source", CATALOGUE.values(), ids=lambda source: source.name)
def test_every_source_says_whose_it_is_and_where_it_is(source) -> None:
    assert source.licence and source.citation and source.description
    for file in source.files:
        assert file.addresses
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        for address in file.addresses:
            assert address.startswith("https://") or (REPOSITORY / address).is_file()


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name.startswith(("sample", "gpt2-nano"))])
def test_the_samples_pins_are_the_committed_files(name: str) -> None:
    for file in CATALOGUE[name].files:
        if file.archive is None:
            path = REPOSITORY / file.addresses[0]
            assert (sha256_of(path), path.stat().st_size) == (file.sha256, file.size_bytes)
