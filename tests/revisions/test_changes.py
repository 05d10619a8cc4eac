import hashlib
from typing import Any

from scratchlm.revisions.changes import Change, changes, read_build
from scratchlm.revisions.reading import MissingArtifact

FILES = {
    "stages/tokenize.py": "tokenize",
    "src/scratchlm/artifacts.py": "write",
    "metrics/tokenize.json": "{}",
    "metrics/pretrain.json": "{}",
    "data/tokens": "tokens",
}


def md5(path: str) -> str:
    return hashlib.md5(FILES[path].encode()).hexdigest()


def entry(cmd: str, deps: list[str], outs: list[str], params: dict[str, Any]) -> dict[str, Any]:
    def listed(paths: list[str]) -> list[dict[str, str]]:
        return [{"path": path, "hash": "md5", "md5": md5(path)} for path in paths]

    return {"cmd": cmd, "deps": listed(deps), "outs": listed(outs), "params": params}


class Held:
    """A revision with two stages that make metrics and one that does not."""

    def __init__(self) -> None:
        self.name, self.rebuild = "main", "`dvc repro`"
        self.files = dict(FILES)
        self.params: dict[str, Any] = {"seed": 1, "tokenizer": {"kind": "bpe"}, "pretrain": {"epochs": 1, "lora": None}}
        self.packages = {"torch": "2.0", "numpy": "1.0"}
        self.sources: dict[str, Any] = {"stories": {"sha256": {"stories.txt": "aaaa"}}}
        library = "src/scratchlm/artifacts.py"
        self.lock = {
            "tokenize": entry(
                "tokenize  --fast", ["stages/tokenize.py", library], ["data/tokens", "metrics/tokenize.json"],
                {"params.yaml": {"seed": 1, "tokenizer": {"kind": "bpe"}}, "environment.json": {"numpy": "1.0"}},
            ),
            "pretrain": entry(
                "pretrain", [library, "data/tokens"], ["metrics/pretrain.json"],
                {"params.yaml": {"seed": 1, "pretrain": {"epochs": 1, "lora": None}}},
            ),
            "report": entry("report", [library], ["data/tokens"], {"params.yaml": {"seed": 99}}),
            "left@over": entry("left", ["stages/tokenize.py"], ["metrics/pretrain.json"], {"params.yaml": {"old": 1}}),
        }  # fmt: skip

    def stages(self) -> list[str]:
        return ["tokenize", "pretrain", "report"]

    def yaml(self, path: str) -> Any:
        return {"dvc.lock": {"stages": self.lock}, "params.yaml": self.params, "environment.json": self.packages}[path]

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise MissingArtifact(self.name, [path], "gone")
        return self.files[path].encode()


def built(revision: Held) -> Any:
    return read_build(revision)  # type: ignore[arg-type]


def test_a_build_is_what_the_lock_says_of_the_stages_that_make_metrics() -> None:
    build = built(Held())
    assert build.parameters == {"seed": 1, "tokenizer.kind": "bpe", "pretrain.epochs": 1, "pretrain.lora": None}
    assert build.packages == {"numpy": "1.0"}
    assert build.code["src/scratchlm/artifacts.py"] == md5("src/scratchlm/artifacts.py")
    assert build.users["src/scratchlm/artifacts.py"] == ("tokenize", "pretrain")
    assert build.users["command of tokenize"] == ("tokenize",)
    assert set(build.outs) == {"data/tokens", "metrics/tokenize.json", "metrics/pretrain.json"}
    assert build.behind == []


def test_a_stage_is_behind_if_parameter_code_metrics_or_package_are_not_those_it_was_built_from() -> None:
    def behind(**changed: Any) -> list[str]:
        held = Held()
        for name, values in changed.items():
            getattr(held, name).update(values)
        return built(held).behind

    assert behind(params={"pretrain": {"epochs": 2, "lora": None}}) == ["pretrain"]
    assert behind(params={"pretrain": {"epochs": 1, "lora": None, "new": 1}}) == ["pretrain"]
    assert behind(params={"seed": 2}) == ["tokenize", "pretrain"]
    assert behind(params={"report": 2}) == []
    assert behind(packages={"numpy": "2.0"}) == ["tokenize"]
    assert behind(files={"stages/tokenize.py": "other"}) == ["tokenize"]
    assert behind(files={"src/scratchlm/artifacts.py": "other"}) == ["tokenize", "pretrain"]
    assert behind(files={"metrics/pretrain.json": "{1}"}) == ["pretrain"]


def test_a_stage_without_its_code_or_its_entry_in_the_lock_is_behind() -> None:
    held = Held()
    del held.files["stages/tokenize.py"], held.lock["report"]
    assert built(held).behind == ["tokenize", "report"]


def different(other: Held) -> Any:
    first = Held()
    return changes(built(first), built(other), (first.sources, other.sources))


def test_nothing_differs_between_equal_builds() -> None:
    assert different(Held()) == ([], [], [], [])


def test_parameters_differ_as_built_and_not_as_written() -> None:
    other = Held()
    other.params["seed"] = 5
    assert different(other).parameters == []
    other.lock["pretrain"]["params"]["params.yaml"]["pretrain"] = {"epochs": 2, "lora": {"rank": 8}}
    assert different(other).parameters == [
        Change("pretrain.epochs", 1, 2),
        Change("pretrain.lora.rank", None, 8),
    ]


def test_packages_and_sources_differ_by_version_and_hash() -> None:
    other = Held()
    other.lock["tokenize"]["params"]["environment.json"]["numpy"] = "2.0"
    other.sources = {"stories": {"sha256": {"stories.txt": "bbbb"}}, "verdict": {"sha256": {"verdict.txt": "cccc"}}}
    found = different(other)
    assert found.packages == [Change("numpy", "1.0", "2.0")]
    assert found.data == [Change("stories/stories.txt", "aaaa", "bbbb"), Change("verdict/verdict.txt", None, "cccc")]


def test_code_differs_with_the_stages_that_use_it() -> None:
    other = Held()
    for stage in ("tokenize", "pretrain"):
        for dep in other.lock[stage]["deps"]:
            if dep["path"] == "src/scratchlm/artifacts.py":
                dep["md5"] = "new"
    other.lock["tokenize"]["cmd"] = "tokenize --fast"  # spacing is not code
    other.lock["pretrain"]["cmd"] = "pretrain --more"
    assert different(other).code == [
        Change("src/scratchlm/artifacts.py", md5("src/scratchlm/artifacts.py"), "new", ("tokenize", "pretrain")),
        Change("command of pretrain", "pretrain", "pretrain --more", ("pretrain",)),
    ]
