import copy
import hashlib
import json
from typing import Any

from scratchlm.compare.changes import Change, changes, read_build
from scratchlm.compare.revision import MissingArtifact

LIBRARY, SCRIPT = "src/scratchlm/run/files.py", "stages/tokenize.py"
FILES = {
    SCRIPT: "tokenize",
    LIBRARY: "write",
    "metrics/tokenize.json": "{}",
    "metrics/pretrain.json": "{}",
    "data/tokens": "tokens",
    "requirements.lock": "numpy==1.0\nscipy==1.0\n",
}


def sha256(path: str) -> str:
    return hashlib.sha256(FILES[path].encode()).hexdigest()


CODE: dict[str, dict[str, dict[str, str]]] = {
    "tokenize": {"files": {SCRIPT: sha256(SCRIPT), LIBRARY: sha256(LIBRARY)}, "packages": {"numpy": "1.0"}},
    "pretrain": {"files": {LIBRARY: sha256(LIBRARY)}, "packages": {}},
    "download": {"files": {}, "packages": {}},
}


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def entry(cmd: str, outs: list[str], params: dict[str, Any]) -> dict[str, Any]:
    """A stage in dvc.lock, which depends on what the stage `code` wrote of it."""
    name = cmd.split()[0]
    return {
        "cmd": cmd,
        "deps": [{"path": f"data/code/{name}.json", "md5": md5(json.dumps(CODE.get(name)))}],
        "outs": [{"path": path, "md5": md5(FILES[path])} for path in outs],
        "params": {"params.yaml": params},
    }


class Held:
    """A revision with two stages that make metrics, one that downloads and one that does neither."""

    def __init__(self) -> None:
        self.name, self.rebuild = "main", "`dvc repro`"
        self.files = dict(FILES)
        self.params: dict[str, Any] = {
            "sources": "sample",
            "seed": 1,
            "tokenizer": {"kind": "bpe"},
            "pretrain": {"epochs": 1, "lora": None},
        }
        self.code = copy.deepcopy(CODE)
        self.lock: dict[str, Any] = {
            "tokenize": entry(
                "tokenize  --fast", ["data/tokens", "metrics/tokenize.json"], {"seed": 1, "tokenizer": {"kind": "bpe"}}
            ),
            "pretrain": entry(
                "pretrain", ["metrics/pretrain.json"], {"seed": 1, "pretrain": {"epochs": 1, "lora": None}}
            ),
            "report": entry("report", ["data/tokens"], {"seed": 99}),
            "left@over": entry("left", ["metrics/pretrain.json"], {"old": 1}),
        }
        self.download({"stories/stories.txt": "aaaa"})

    def download(self, files: dict[str, str], path: str = "data/sources.json") -> None:
        """These files, `SOURCE/FILE` -> sha256, are what was downloaded."""
        sources: dict[str, Any] = {}
        for name, digest in files.items():
            source, _, file = name.partition("/")
            sources.setdefault(source, {"sha256": {}})["sha256"][file] = digest
        self.files[path] = json.dumps(sources)
        self.lock["download"] = entry("download", [], {"sources": "sample"})
        self.lock["download"]["outs"] = [{"path": path, "md5": md5(self.files[path])}]

    def stages(self) -> list[str]:
        return ["download", "tokenize", "pretrain", "report"]

    def yaml(self, path: str) -> Any:
        return {"dvc.lock": {"stages": self.lock}, "params.yaml": self.params}[path]

    def json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        written = {f"data/code/{name}.json": json.dumps(code) for name, code in self.code.items()}
        if path not in (found := self.files | written):
            raise MissingArtifact(self.name, [path], "gone")
        return found[path].encode()


def built(revision: Held) -> Any:
    return read_build(revision)  # type: ignore[arg-type]


def test_a_build_is_what_the_lock_says_of_downloads_and_of_the_stages_that_make_metrics() -> None:
    build = built(Held())
    trained = {"seed": 1, "tokenizer.kind": "bpe", "pretrain.epochs": 1, "pretrain.lora": None}
    assert build.parameters == {"sources": "sample", **trained}
    assert build.sources == {"stories/stories.txt": "aaaa"}
    assert build.packages == {"numpy": "1.0"}
    assert build.files[LIBRARY] == sha256(LIBRARY)
    assert build.users[LIBRARY] == ("tokenize", "pretrain")
    assert build.users["command of tokenize"] == ("tokenize",)
    assert set(build.outs) == {"data/sources.json", "data/tokens", "metrics/tokenize.json", "metrics/pretrain.json"}
    assert build.behind == []


def test_a_stage_is_behind_if_what_it_was_built_from_has_changed() -> None:
    def behind(**changed: Any) -> list[str]:
        held = Held()
        for name, values in changed.items():
            getattr(held, name).update(values)
        return built(held).behind

    assert behind(params={"pretrain": {"epochs": 2, "lora": None}}) == ["pretrain"]
    assert behind(params={"pretrain": {"epochs": 1, "lora": None, "new": 1}}) == ["pretrain"]
    assert behind(params={"seed": 2}) == ["tokenize", "pretrain"]
    assert behind(params={"report": 2}) == []
    assert behind(files={SCRIPT: "other"}) == ["tokenize"]
    assert behind(files={"requirements.lock": "numpy==2.0\nscipy==1.0\n"}) == ["tokenize"]
    assert behind(files={"requirements.lock": "numpy==1.0\nscipy==2.0\n"}) == []
    assert behind(files={LIBRARY: "other"}) == ["tokenize", "pretrain"]
    assert behind(files={"metrics/pretrain.json": "{1}"}) == ["pretrain"]


def test_a_stage_is_behind_if_the_record_of_its_code_was_written_again() -> None:
    held = Held()
    held.code["pretrain"]["packages"]["scipy"] = "1.0"
    assert built(held).behind == ["pretrain"]


def test_a_stage_without_its_code_or_its_entry_in_the_lock_is_behind() -> None:
    held = Held()
    del held.files[SCRIPT], held.lock["report"]
    assert built(held).behind == ["tokenize", "report"]


def different(other: Held) -> Any:
    return changes(built(Held()), built(other))


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
    other.code["tokenize"]["packages"]["numpy"] = "2.0"
    other.download({"stories/stories.txt": "bbbb", "verdict/verdict.txt": "cccc"})
    found = different(other)
    assert found.packages == [Change("numpy", "1.0", "2.0")]
    assert found.data == [Change("stories/stories.txt", "aaaa", "bbbb"), Change("verdict/verdict.txt", None, "cccc")]


def test_sources_are_compared_with_those_of_a_build_that_has_them_among_its_metrics() -> None:
    old = Held()
    old.download({"stories/stories.txt": "aaaa"}, "metrics/download.json")
    assert different(old).data == []
    old.download({"stories/stories.txt": "bbbb"}, "metrics/download.json")
    assert different(old).data == [Change("stories/stories.txt", "aaaa", "bbbb")]
    old.download({"stories/stories.txt": "aaaa"}, "metrics/download.json")
    lost = Held()
    del lost.files["data/sources.json"]
    assert changes(built(old), built(lost)).data == []  # the content is the same


def test_where_the_list_of_the_sources_is_lost_its_hash_tells_two_builds_apart() -> None:
    other = Held()
    other.download({"stories/stories.txt": "bbbb"})
    hashes = [md5(held.files["data/sources.json"]) for held in (Held(), other)]
    del other.files["data/sources.json"]
    assert different(other).data == [Change("data/sources.json", *hashes)]


def test_code_differs_with_the_stages_that_use_it() -> None:
    other = Held()
    for stage in ("tokenize", "pretrain"):
        other.code[stage]["files"][LIBRARY] = "new"
    other.lock["tokenize"]["cmd"] = "tokenize --fast"  # spacing is not code
    other.lock["pretrain"]["cmd"] = "pretrain --more"
    assert different(other).code == [
        Change(LIBRARY, sha256(LIBRARY), "new", ("tokenize", "pretrain")),
        Change("command of pretrain", "pretrain", "pretrain --more", ("pretrain",)),
    ]


def test_where_the_record_of_the_code_is_lost_its_hash_tells_two_builds_apart() -> None:
    first, other = Held(), Held()
    del first.code["pretrain"], other.code["pretrain"]
    assert changes(built(first), built(other)).code == []
    assert different(other) == ([], [], [], [])  # one of the two has it
    other.lock["pretrain"]["deps"][0]["md5"] = "another"
    (change,) = changes(built(first), built(other)).code
    assert (change.name, change.stages) == ("data/code/pretrain.json", ("pretrain",))
