"""How a team shares what was built: the commands of docs/teams.md, with a folder and an S3 server as the place."""

import filecmp
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.clones import commit, run, set_parameter, stages_run

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
BUCKET = "the-team"


@pytest.fixture
def builder(built, tmp_path) -> Path:
    """The clone of a member who has built and committed everything."""
    return shutil.copytree(built, tmp_path / "builder" / "scratchlm", symlinks=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3 and has an empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client(address).create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


def client(address: str):
    return boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="someone", aws_secret_access_key="secret"
    )


def share(builder: Path, url: str, **options: str) -> None:
    """The commands of docs/teams.md for whoever builds."""
    run(builder, "dvc", "remote", "add", "--default", "team", url)
    for name, value in options.items():
        run(builder, "dvc", "remote", "modify", "team", name, value)
    commit(builder, "Share what is built")
    run(builder, "dvc", "push", **CREDENTIALS)


def join(builder: Path, folder: Path) -> Path:
    """A clone of another member, with an empty cache."""
    run(folder, "git", "clone", "-q", str(builder), "newcomer")
    newcomer = folder / "newcomer"
    assert not (newcomer / ".dvc" / "cache").exists()
    return newcomer


def objects(cache: Path) -> set[str]:
    """The files in a DVC cache or remote folder, by hash, without those that git has."""
    return {path.relative_to(cache).as_posix() for path in (cache / "files").rglob("*") if path.is_file()}


def assert_same_data(one: Path, other: Path) -> None:
    names = {
        folder: sorted(path.relative_to(folder) for root in ("data", "metrics") for path in (folder / root).rglob("*"))
        for folder in (one, other)
    }
    assert names[one] == names[other]
    files = [name for name in names[one] if (one / name).is_file()]
    assert len(files) > 30
    assert filecmp.cmpfiles(one, other, files, shallow=False) == (files, [], [])


def test_with_a_folder_as_remote_everything_is_computed_once_in_the_team(builder, tmp_path):
    share(builder, str(tmp_path / "shared"))
    newcomer = join(builder, tmp_path)
    assert stages_run(run(newcomer, "dvc", "repro", "--pull")) == []
    assert_same_data(builder, newcomer)
    assert run(newcomer, "git", "status", "--porcelain").stdout == ""
    assert "up to date" in run(newcomer, "dvc", "status").stdout
    # Metrics and curves come with git; the remote has the other files of dvc.lock
    assert objects(tmp_path / "shared") < objects(builder / ".dvc" / "cache")
    run(builder, "git", "tag", "--annotate", "assistant@v1.0.0", "--message", "First")
    run(tmp_path, "dvc", "artifacts", "get", str(builder), "assistant", "--rev", "v1.0.0", "--out", "fetched")
    assert filecmp.dircmp(tmp_path / "fetched", builder / "data/models/finetune_instruct").diff_files == []
    assert len(list((tmp_path / "fetched").iterdir())) == 2

    set_parameter(newcomer, "judge.controls", 3)
    assert stages_run(run(newcomer, "dvc", "repro", "--pull")) == ["preflight", "judge", "report"]
    commit(newcomer, "Fewer controls")
    run(newcomer, "dvc", "push")
    run(builder, "git", "pull", "-q", str(newcomer), "HEAD")
    assert stages_run(run(builder, "dvc", "repro", "--pull")) == []
    assert_same_data(builder, newcomer)


def test_a_newcomer_computes_nothing_with_s3_as_remote(builder, s3, tmp_path):
    share(builder, f"s3://{BUCKET}/scratchlm", endpointurl=s3)
    newcomer = join(builder, tmp_path)
    done = run(newcomer, "dvc", "repro", "--pull", **CREDENTIALS)
    assert stages_run(done) == []
    assert_same_data(builder, newcomer)
    assert run(newcomer, "git", "status", "--porcelain").stdout == ""
    stored = {
        entry["Key"].removeprefix("scratchlm/") for entry in client(s3).list_objects_v2(Bucket=BUCKET)["Contents"]
    }
    assert stored == objects(newcomer / ".dvc" / "cache")
