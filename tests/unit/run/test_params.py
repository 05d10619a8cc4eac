from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from scratchlm.run.errors import UserError
from scratchlm.run.params import Section, Seed, check_params, load_yaml, read_params
from scratchlm.run.yaml_reader import parse_yaml
from stages import preflight

REPOSITORY = Path(__file__).resolve().parents[3]


class Plain(BaseModel):
    """As sections of the model room are: not a Section."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rank: Annotated[int, Field(ge=1)]


class Fixed(Section):
    kind: Literal["fixed"]


class Learned(Section):
    kind: Literal["learned"]
    size: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _not_unlucky(self) -> "Learned":
        if self.size == 13:
            raise ValueError("size 13 is unlucky; take another")
        return self


class Train(Section):
    rate: Annotated[float, Field(gt=0)]
    steps: int
    width: Literal["longest"] | Annotated[int, Field(ge=1)]
    plain: Plain | None


class Example(Section):
    seed: Seed
    train: Train
    kind: Annotated[Fixed | Learned, Field(discriminator="kind")]
    sizes: list[Literal["small", "large"]]


GOOD: dict[str, Any] = {
    "seed": 1,
    "train": {"rate": 0.1, "steps": 3, "width": "longest", "plain": {"rank": 4}},
    "kind": {"kind": "learned", "size": 2},
    "sizes": ["small"],
}


def changed(**changes: Any) -> dict[str, Any]:
    """GOOD with some keys changed; `train` is changed within."""
    train = GOOD["train"] | changes.pop("train", {})
    return GOOD | {"train": train} | changes


def sentences(values: Any, *, whole: bool = False) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_params(values, Example, source="params.yaml", whole=whole)
    return str(caught.value).split("\n")


def test_a_good_mapping_becomes_the_typed_section() -> None:
    params = check_params(GOOD, Example, source="params.yaml")
    assert params.train.plain == Plain(rank=4)
    assert params.kind == Learned(kind="learned", size=2)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            changed(train={"rat": 0.1}),
            "params.yaml: train unknown key rat (did you mean rate?); allowed are rate, steps, width, plain",
        ),
        (
            changed(train={"plain": {"rank": 1, "ranc": 2}}),
            "params.yaml: train.plain unknown key ranc (did you mean rank?); allowed are rank",
        ),
        (
            changed(kind={"kind": "fixed", "size": 2}),
            "params.yaml: kind unknown key size; allowed are kind",
        ),
        (
            {key: value for key, value in GOOD.items() if key != "seed"},
            "params.yaml: seed is missing; every parameter must be given, profiles/ shows complete files",
        ),
        (
            changed(kind={"kind": "learned"}),
            "params.yaml: kind.size is missing; every parameter must be given, profiles/ shows complete files",
        ),
        (
            changed(kind={}),
            "params.yaml: kind.kind is missing; every parameter must be given, profiles/ shows complete files",
        ),
        (changed(kind={"kind": "fixd"}), "params.yaml: kind.kind is 'fixd': must be one of 'fixed', 'learned'"),
        (
            changed(kind={"kind": "learned", "size": 1}),
            "params.yaml: kind.size is 1: must be greater than or equal to 2",
        ),
        (changed(kind={"kind": "learned", "size": 13}), "params.yaml: kind size 13 is unlucky; take another"),
        (changed(seed="1"), "params.yaml: seed is '1': must be a valid integer"),
        (changed(seed=True), "params.yaml: seed is True: must be a valid integer"),
        (changed(seed=-1), "params.yaml: seed is -1: must be greater than or equal to 0"),
        (changed(seed=2**31), "params.yaml: seed is 2147483648: must be less than 2147483648"),
        (changed(train={"rate": 0}), "params.yaml: train.rate is 0: must be greater than 0"),
        (changed(train={"rate": float("nan")}), "params.yaml: train.rate is nan: must be greater than 0"),
        (changed(train={"steps": 1.5}), "params.yaml: train.steps is 1.5: must be a valid integer"),
        (
            changed(train={"width": 0}),
            "params.yaml: train.width is 0: must be 'longest' or must be greater than or equal to 1",
        ),
        (changed(train={"plain": "x"}), "params.yaml: train.plain is 'x': must be a mapping of parameters"),
        (changed(sizes=["small", "huge"]), "params.yaml: sizes.1 is 'huge': must be 'small' or 'large'"),
        ([1], "params.yaml: expected a mapping of parameters, got list"),
        (None, "params.yaml: expected a mapping of parameters, got NoneType"),
    ],
)  # fmt: skip
def test_a_mistake_gives_one_sentence_with_key_value_and_what_is_allowed(values: Any, sentence: str) -> None:
    assert sentences(values) == [sentence]


def test_every_mistake_gets_its_own_sentence() -> None:
    values = changed(seed=-1, train={"rate": "fast", "stepz": 2}, kind={"kind": "learned", "size": 0})
    assert sorted(line.split(":")[1].split()[0] for line in sentences(values)) == [
        "kind.size",
        "seed",
        "train",
        "train.rate",
    ]


def test_the_whole_file_refuses_keys_that_no_stage_reads_and_a_stage_ignores_them() -> None:
    values = GOOD | {"sede": 3}
    check_params(values, Example, source="params.yaml")
    assert sentences(values, whole=True) == [
        "params.yaml: unknown key sede (did you mean seed?); allowed are seed, train, kind, sizes"
    ]


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())


@settings(deadline=None)
@given(st.sampled_from(["seed", "train", "kind", "sizes", "rate", "steps", "width", "plain"]), ANYTHING)
def test_any_value_is_taken_or_refused_in_our_own_words(key: str, value: Any) -> None:
    values = changed(**{key: value}) if key in GOOD and key != "train" else changed(train={key: value})
    try:
        check_params(values, Example, source="params.yaml")
    except UserError as error:
        for line in str(error).split("\n"):
            assert line.startswith("params.yaml: ")
        for jargon in (
            "pydantic",
            "Input",
            "should",
            "validation error",
            "literal[",
            "constrained",
            "instance of",
            "tag",
        ):
            assert jargon not in str(error).replace(repr(value), "")


@pytest.mark.parametrize("text", ["4e-4", "4E-4", "4.e-4", "0.4e-3", ".4e-3", "+4e-4", "0.0004"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "mark of the encoding"])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, text: str, mark: str) -> None:
    (tmp_path / "params.yaml").write_text(f"{mark}rate: {text}\n", encoding="utf-8")
    assert load_yaml(tmp_path / "params.yaml") == {"rate": 4e-4}


@pytest.mark.parametrize("text", ["1e", "e5", "124M", "1e5x"])
def test_what_only_looks_like_an_exponent_stays_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(f"size: {text}\n")
    assert load_yaml(tmp_path / "params.yaml") == {"size": text}


TEXTS = ["0173", "060", "08", "0o17", "0x1F", "0b11", "yes", "off", "y", "True", "1:30", "+.5", ".5e3", "1_000",
         "1_0e3", "~", "2024-01-01", "1e400", "-.inf", "12e03", "+12", "0.0", "'7'"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_value_means_to_the_stages_what_it_means_to_dvc(tmp_path: Path, text: str) -> None:
    from dvc.utils.serialize import parse_yaml as dvc_reads

    (tmp_path / "params.yaml").write_text(f"a: {text}\n")
    found, recorded = load_yaml(tmp_path / "params.yaml")["a"], dvc_reads(f"a: {text}", "params.yaml")["a"]
    assert (type(found), found) == (type(recorded), recorded)


def test_aliases_and_merges_are_followed() -> None:
    text = "a: &a {x: 1}\n" + "".join(f"b{i}: {{<<: *a, y: [*a, *a]}}\n" for i in range(200))
    assert parse_yaml(text, "p")["b199"] == {"x": 1, "y": [{"x": 1}, {"x": 1}]}


def test_a_seed_of_yaml_1_1_is_decimal_and_its_booleans_are_refused() -> None:
    assert parse_yaml("0123", "p") == 123
    with pytest.raises(UserError, match=r"^p: seed is 'yes': must be a valid integer"):
        check_params(parse_yaml("{seed: yes}", "p"), Example, source="p")


def nested_aliases(value: str) -> bytes:
    """20 values, each with 9 aliases of the one before. value: a template for it."""
    return "\n".join(
        ["v0: &v0 {}", *(f"v{i}: &v{i} " + value.format(f"*v{i - 1}, " * 9) for i in range(1, 20))]
    ).encode()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("seed: 1 # é".encode("latin-1"), "not UTF-8 text"),
        ("seed: 1".encode("utf-16"), "not UTF-8 text"),
        (b"[" * 2_000, "not valid YAML: "),
        (b"{a: " * 2_000, "not valid YAML: "),
        (b"- " * 5_000, "not valid YAML: "),
        (b"seed: 2024-99-99", "not valid YAML: a value that cannot be read"),
        (b"seed: !!int abc", "not valid YAML: a value that cannot be read"),
        (b"seed: !!float abc", "not valid YAML: a value that cannot be read"),
        (b"seed: !!bool abc", "not valid YAML: a value that cannot be read"),
        (b"seed: " + b"1" * 5_000, "not valid YAML: a value that cannot be read"),
        (
            b"a:\n  seed: 0x" + b"f" * 5_000,
            "not valid YAML: a value that cannot be read: an integer of more than 64 bits in",
        ),
        (b"seed: -9223372036854775808", "not valid YAML: a value that cannot be read: an integer of more than 64 bits"),
        (b"seed: !!timestamp x", "not valid YAML: "),
        (b"seed: !!binary \xc3\xa9", "not valid YAML: "),
        (b"seed: 1\nseed: 2", "not valid YAML: "),
        (b"seed: *a", "not valid YAML: "),
        (b"a: 1\n---\nb: 1", "not valid YAML: "),
        (b"seed: \x00", "not valid YAML: "),
        (b"seed: !!python/name:os.system", "not valid YAML: "),
        (nested_aliases("[{}]"), "not valid YAML: a value that cannot be read: its aliases stand for more than"),
        (nested_aliases("{{<<: [{}]}}"), "not valid YAML: a value that cannot be read: its aliases stand for"),
        (nested_aliases("{{? [{}] : 1}}"), "not valid YAML: "),
        (b"seed: &a [*a]", "not valid YAML: a value that cannot be read: its aliases stand for more than"),
        (b"seed: &a {b: {c: *a}}", "not valid YAML: a value that cannot be read: its aliases stand for more than"),
    ],
)
def test_a_file_of_another_shape_is_refused_in_one_sentence(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_yaml(tmp_path / "params.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'params.yaml'}: {fault}")
    assert "\n" not in str(caught.value)


def test_each_unknown_key_has_a_sentence_of_its_own() -> None:
    assert sentences(changed(train={"a": 1, "b" * 5_000: 2})) == [
        "params.yaml: train unknown key a; allowed are rate, steps, width, plain",
        f"params.yaml: train unknown key {'b' * 199}…; allowed are rate, steps, width, plain",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[" + "1, " * 5_000 + "]", "[" + "1, " * 65 + "1,…"),
        ("'" + "x" * 100_000 + "'", f"'{'x' * 198}…"),
        ("'" + "x" * 199 + "'", f"'{'x' * 198}…"),
        ("'" + "x" * 198 + "'", f"'{'x' * 198}'"),
    ],
)
def test_a_value_of_any_size_fits_a_sentence(text: str, shown: str) -> None:
    with pytest.raises(UserError) as caught:
        check_params(parse_yaml(f"{{seed: {text}}}", "p"), Example, source="p")
    assert str(caught.value).startswith(f"p: seed is {shown}: must be ")


def test_a_file_is_read_into_the_section(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(GOOD | {"sede": 3}))
    assert read_params(tmp_path / "params.yaml", Example) == check_params(GOOD, Example, source="")
    with pytest.raises(UserError, match=r"^params\.yaml: unknown key sede \(did you mean seed"):
        read_params(tmp_path / "params.yaml", Example, whole=True)


def test_a_missing_file_says_where_to_take_one_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: no such file; copy one from profiles/$"):
        read_params(tmp_path / "params.yaml", Example)


def test_a_file_that_is_not_yaml_gives_one_line_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: [1\ntrain: 2\n")
    with pytest.raises(UserError, match=r"params\.yaml: not valid YAML: .*line 2") as caught:
        read_params(tmp_path / "params.yaml", Example)
    assert "\n" not in str(caught.value)


def test_sections_cannot_be_changed_after_the_check() -> None:
    with pytest.raises(ValueError, match="frozen"):
        check_params(GOOD, Example, source="params.yaml").seed = 2  # type: ignore[misc]


@pytest.mark.parametrize("profile", sorted((REPOSITORY / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_is_complete_and_valid(profile: Path) -> None:
    read_params(profile, preflight.Params, whole=True)


def test_the_committed_params_are_the_sample_profile() -> None:
    assert (REPOSITORY / "params.yaml").read_bytes() == (REPOSITORY / "profiles" / "sample.yaml").read_bytes()


@pytest.mark.parametrize("key", ["epochs", "learning_rate"])
def test_training_neither_forever_nor_at_an_infinite_rate(key: str) -> None:
    values = load_yaml(REPOSITORY / "profiles" / "sample.yaml")
    values["pretrain"] = values["pretrain"] | {key: float("inf")}
    with pytest.raises(UserError, match=f"pretrain.{key} is inf: must be a finite number"):
        check_params(values, preflight.Params, source="params.yaml")
