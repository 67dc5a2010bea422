"""The local Hub, through the real client: what goes up comes down, and every fault is felt."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    ModelCard,
    constants,
    get_token,
    hf_hub_download,
    snapshot_download,
    upload_folder,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.helpers.hub_client import point_client_at
from tests.helpers.hub_server import READ_TOKEN, STRANGER_TOKEN, USER, WRITE_TOKEN, HubServer
from tests.helpers.runs import ROOT, file_digests

REPO = f"{USER}/model"
WEIGHTS = os.urandom(300_000)
CARD = (
    "---\nlicense: mit\nlanguage: en\ntags: [tiny]\npipeline_tag: text-generation\n---\n# A model\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small files and one for LFS."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def uploaded(local_hub: HubServer, folder: Path) -> HfApi:
    """The client after an upload of the folder; no requests are recorded yet."""
    api = HfApi()
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    local_hub.forget_requests()
    return api


def lfs_name(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


# ------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("part_bytes", [10**6, 70_000], ids=["one part", "parts"])
def test_a_folder_comes_back_as_it_was_sent(
    local_hub: HubServer, folder: Path, part_bytes: int
) -> None:
    local_hub.storage.part_bytes = part_bytes
    url = HfApi().create_repo(REPO, private=True)
    assert url.repo_id == REPO and url.startswith(local_hub.endpoint)
    # the function of the module, whose endpoint was read at import
    upload_folder(repo_id=REPO, folder_path=folder)
    parts = local_hub.requests("PUT", "lfs-storage")
    assert len(parts) == -(-len(WEIGHTS) // part_bytes)
    assert sum(part.body_bytes for part in parts) == len(WEIGHTS)

    copy = Path(snapshot_download(REPO))
    assert copy.is_relative_to(constants.HF_HOME)
    digests = file_digests(copy)
    del digests[".gitattributes"]
    assert digests == file_digests(folder)
    assert sorted(local_hub.file_names(REPO)) == sorted(digests)
    assert local_hub.read_file(REPO, "config.json") == (folder / "config.json").read_bytes()


def test_tokens_go_to_the_hub_and_not_to_its_storage(
    local_hub: HubServer, uploaded: HfApi, folder: Path
) -> None:
    (folder / "other.safetensors").write_bytes(WEIGHTS[::-1])
    uploaded.upload_folder(repo_id=REPO, folder_path=folder)
    snapshot_download(REPO)
    from_storage = local_hub.requests(path_contains="lfs-storage")
    assert {request.method for request in from_storage} == {"PUT", "GET"}
    assert not any(request.authorized for request in from_storage)
    # HEAD and GET of each small file, HEAD of the others
    assert all(request.authorized for request in local_hub.requests(path_contains="/resolve/"))
    assert all(request.authorized for request in local_hub.requests(path_contains="/commit/"))
    assert WRITE_TOKEN not in repr(local_hub.requests())


def test_a_file_that_is_there_is_neither_sent_nor_committed_again(
    local_hub: HubServer, uploaded: HfApi, folder: Path
) -> None:
    head = uploaded.model_info(REPO).sha
    commit = uploaded.upload_folder(repo_id=REPO, folder_path=folder)
    assert commit.oid == head
    assert not local_hub.requests("PUT") and not local_hub.requests("POST", "/commit/")


def test_what_a_repository_tells_of_itself(uploaded: HfApi) -> None:
    info = uploaded.model_info(REPO, files_metadata=True)
    assert info.id == REPO and info.private is False and info.card_data is not None
    assert info.pipeline_tag == "text-generation" and info.tags == ["tiny"]
    weights = next(file for file in info.siblings or [] if file.rfilename.startswith("model"))
    assert weights.size == len(WEIGHTS)
    assert weights.lfs is not None and weights.lfs.sha256 == lfs_name(WEIGHTS)
    names = [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert uploaded.list_repo_files(REPO) == names
    assert uploaded.file_exists(REPO, "config.json")
    assert not uploaded.file_exists(REPO, "pytorch_model.bin")
    assert uploaded.repo_exists(REPO) and not uploaded.repo_exists(f"{USER}/another")
    assert [path.path for path in uploaded.get_paths_info(REPO, ["config.json", "x"])] == [names[2]]


def test_folders_of_a_repository_are_listed_one_by_one(uploaded: HfApi) -> None:
    uploaded.upload_file(path_or_fileobj=b"{}", path_in_repo="a/b/c.json", repo_id=REPO)

    def listed(**where: object) -> list[str]:
        return [entry.path for entry in uploaded.list_repo_tree(REPO, **where)]

    assert "a" in listed() and "a/b" not in listed()
    assert listed(path_in_repo="a") == ["a/b"]
    assert listed(path_in_repo="a", recursive=True) == ["a/b", "a/b/c.json"]
    with pytest.raises(RemoteEntryNotFoundError):
        listed(path_in_repo="nowhere")
    uploaded.delete_folder("a", REPO)
    assert "a" not in listed()
    with pytest.raises(RemoteEntryNotFoundError):
        uploaded.delete_file("a/b/c.json", REPO)


def test_a_revision_is_a_branch_a_tag_or_a_commit(local_hub: HubServer, uploaded: HfApi) -> None:
    first = uploaded.model_info(REPO).sha
    assert first is not None
    uploaded.create_tag(REPO, tag="v1")
    uploaded.create_branch(REPO, branch="steps/10")
    uploaded.create_branch(REPO, branch="steps/10", exist_ok=True)
    for branch, contents in (("main", b"main"), ("steps/10", b"ten")):
        uploaded.upload_file(
            path_or_fileobj=contents, path_in_repo="config.json", repo_id=REPO, revision=branch
        )
    for revision, contents in (("main", b"main"), ("steps/10", b"ten")):
        path = hf_hub_download(REPO, "config.json", revision=revision)
        assert Path(path).read_bytes() == contents
    for revision in ("v1", first, first[:7]):
        path = hf_hub_download(REPO, "config.json", revision=revision)
        assert Path(path).read_text() == '{"model_type": "gpt2"}'
    refs = uploaded.list_repo_refs(REPO)
    assert [branch.name for branch in refs.branches] == ["main", "steps/10"]
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    history = uploaded.list_repo_commits(REPO)
    assert [commit.commit_id for commit in history][1] == first and len(history) == 3
    with pytest.raises(RevisionNotFoundError):
        uploaded.model_info(REPO, revision="v2")
    with pytest.raises(HfHubHTTPError, match="409"):
        uploaded.create_tag(REPO, tag="v1")
    with pytest.raises(HfHubHTTPError, match="412"):
        uploaded.upload_file(
            path_or_fileobj=b"late", path_in_repo="late", repo_id=REPO, parent_commit=first
        )
    uploaded.delete_branch(REPO, branch="steps/10")
    assert not uploaded.revision_exists(REPO, "steps/10")


def test_a_commit_of_lfs_contents_that_were_not_sent_is_refused(uploaded: HfApi) -> None:
    operation = CommitOperationAdd("new.safetensors", b"\0 not sent")
    operation._upload_mode, operation._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="points to no uploaded object"):
        uploaded.create_commit(REPO, [operation], commit_message="without its contents")


def test_a_dataset_is_loaded_and_streamed(local_hub: HubServer) -> None:
    import datasets

    api, repo = HfApi(), f"{USER}/data"
    api.create_repo(repo, repo_type="dataset", private=True)
    lines = b'{"text": "a"}\n{"text": "b"}\n'
    api.upload_file(
        path_or_fileobj=lines, path_in_repo="train.jsonl", repo_id=repo, repo_type="dataset"
    )
    for streaming in (False, True):
        records = datasets.load_dataset(repo, split="train", streaming=streaming)
        assert list(records) == [{"text": "a"}, {"text": "b"}]


# --------------------------------------------------------------- accounts and permissions


def test_a_private_repository_is_there_for_its_owner_only(local_hub: HubServer) -> None:
    local_hub.add_repository(REPO, {"config.json": b"{}"}, private=True)
    assert HfApi().model_info(REPO).private
    assert HfApi(token=READ_TOKEN).model_info(REPO).private
    for token in (STRANGER_TOKEN, False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info(REPO)
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(REPO, "config.json", token=token)
    HfApi().update_repo_settings(REPO, private=False)
    assert HfApi(token=False).model_info(REPO).private is False


def test_who_may_write(local_hub: HubServer) -> None:
    assert HfApi().whoami()["name"] == USER and get_token() == WRITE_TOKEN
    assert HfApi().create_repo("team/model", private=True).repo_id == "team/model"
    assert HfApi().create_repo("model").repo_id == REPO
    assert HfApi().create_repo(REPO, exist_ok=True).repo_id == REPO
    for call, status in (
        (lambda: HfApi().create_repo(REPO), "409"),
        (lambda: HfApi().create_repo("stranger/model"), "403"),
        (lambda: HfApi(token=READ_TOKEN).create_repo(f"{USER}/another"), "403"),
        (lambda: HfApi(token=False).create_repo(f"{USER}/another"), "401"),
        (lambda: HfApi(token=STRANGER_TOKEN).create_branch(REPO, branch="x"), "403"),
    ):
        with pytest.raises(HfHubHTTPError, match=status):
            call()
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_unknown").whoami()
    HfApi().delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        HfApi().delete_repo(REPO)


# -------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, HfHubHTTPError),
        (403, HfHubHTTPError),
        (404, RepositoryNotFoundError),
        (409, HfHubHTTPError),
        (429, HfHubHTTPError),
        (500, HfHubHTTPError),
        (503, HfHubHTTPError),
    ],
)
def test_a_status_is_the_error_that_the_client_makes_of_it(
    local_hub: HubServer, uploaded: HfApi, status: int, error: type[HfHubHTTPError]
) -> None:
    local_hub.fail_next(method="GET", path_contains=REPO, with_status=status)
    with pytest.raises(error) as caught:
        uploaded.model_info(REPO)
    assert caught.value.response.status_code == status
    assert uploaded.model_info(REPO).id == REPO


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_upload_goes_on_after_passing_faults(
    local_hub: HubServer, folder: Path, retry_waits: list[float], status: int
) -> None:
    HfApi().create_repo(REPO)
    for step in ("/preupload/", "/lfs/objects/batch", "/lfs-storage/"):
        local_hub.fail_next(path_contains=step, with_status=status, times=2)
    HfApi().upload_folder(repo_id=REPO, folder_path=folder)
    assert local_hub.read_file(REPO, "model.safetensors") == WEIGHTS
    assert retry_waits == [1, 2] * 3


def test_the_client_waits_as_long_as_it_is_told(
    local_hub: HubServer, folder: Path, retry_waits: list[float]
) -> None:
    HfApi().create_repo(REPO)
    local_hub.fail_next(path_contains="/preupload/", with_status=429, retry_after=17)
    HfApi().upload_folder(repo_id=REPO, folder_path=folder)
    assert retry_waits == [18]


@pytest.mark.parametrize("part_bytes", [10**6, 70_000], ids=["one part", "parts"])
def test_a_connection_that_breaks_during_an_upload_is_made_again(
    local_hub: HubServer, folder: Path, retry_waits: list[float], part_bytes: int
) -> None:
    local_hub.storage.part_bytes = part_bytes
    HfApi().create_repo(REPO)
    local_hub.break_next(method="PUT", path_contains="lfs")
    HfApi().upload_folder(repo_id=REPO, folder_path=folder)
    broken, *others = local_hub.requests("PUT", "lfs")
    assert broken.status is None and 0 < broken.body_bytes < min(part_bytes, len(WEIGHTS))
    assert sum(request.body_bytes for request in others) == len(WEIGHTS)
    assert local_hub.read_file(REPO, "model.safetensors") == WEIGHTS
    assert len(retry_waits) == 1


def test_an_upload_that_is_started_again_sends_only_what_is_missing(
    local_hub: HubServer, folder: Path, retry_waits: list[float]
) -> None:
    missing = WEIGHTS[::-1]
    (folder / "model-2.safetensors").write_bytes(missing)
    api = HfApi()
    api.create_repo(REPO)
    local_hub.break_next(method="PUT", path_contains=lfs_name(missing), times=float("inf"))
    with pytest.raises(RuntimeError, match=r"uploading 'model-2\.safetensors'"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert local_hub.file_names(REPO) == [], "nothing is committed before all is there"
    local_hub.heal()
    local_hub.forget_requests()
    api.upload_folder(repo_id=REPO, folder_path=folder)
    (sent,) = local_hub.requests("PUT")
    assert sent.path.endswith(lfs_name(missing)) and sent.body_bytes == len(missing)
    assert local_hub.read_file(REPO, "model.safetensors") == WEIGHTS


def test_a_download_that_breaks_goes_on_where_it_broke(
    local_hub: HubServer,
    uploaded: HfApi,
    retry_waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the client keeps whole pieces only
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    local_hub.break_next(method="GET", path_contains="lfs-storage")
    path = hf_hub_download(REPO, "model.safetensors")
    assert Path(path).read_bytes() == WEIGHTS
    assert [request.status for request in local_hub.requests("GET", "lfs")] == [None, 206]


def test_a_slow_answer_is_a_timeout_for_who_cannot_wait(
    local_hub: HubServer, uploaded: HfApi
) -> None:
    local_hub.delay_next(20, path_contains=REPO)
    with pytest.raises(Exception, match="timed out") as caught:
        uploaded.model_info(REPO, timeout=0.1)
    assert type(caught.value).__name__ == "ReadTimeout"
    local_hub.delay_next(0.2, path_contains=REPO)
    assert uploaded.model_info(REPO, timeout=10).id == REPO


def test_a_server_that_was_down_comes_back_with_all_that_it_had(
    local_hub: HubServer, uploaded: HfApi, retry_waits: list[float]
) -> None:
    with local_hub.down():
        with pytest.raises(Exception, match="Connection refused"):
            uploaded.model_info(REPO)
        with pytest.raises(LocalEntryNotFoundError):
            hf_hub_download(REPO, "model.safetensors")
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == WEIGHTS


def test_faults_hit_as_many_requests_as_they_say(local_hub: HubServer, uploaded: HfApi) -> None:
    local_hub.fail_next(path_contains=REPO, with_status=403, times=2, skip=1)
    local_hub.fail_next(path_contains="another path", with_status=403)
    for _ in range(6):
        try:
            uploaded.model_info(REPO)
        except HfHubHTTPError:
            continue
    statuses = [request.status for request in local_hub.requests(path_contains=REPO)]
    assert statuses == [200, 403, 403, 200, 200, 200]


# --------------------------------------------------------------------------------- cards


def test_a_card_is_validated_before_anything_is_sent(
    local_hub: HubServer, uploaded: HfApi, folder: Path
) -> None:
    ModelCard(CARD).validate()
    wrong = CARD.replace("mit", "My License")
    with pytest.raises(ValueError, match='"license" must be one of'):
        ModelCard(wrong).validate()
    (folder / "README.md").write_text(wrong)
    with pytest.raises(ValueError, match='"license" must be one of'):
        uploaded.upload_folder(repo_id=REPO, folder_path=folder)
    assert {request.path for request in local_hub.requests()} == {"/api/validate-yaml"}
    (folder / "README.md").write_text("# Without metadata")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        uploaded.upload_folder(repo_id=REPO, folder_path=folder)


# -------------------------------------------------------------------------- other processes


PUSH_AND_LOAD = f"""
import torch
from huggingface_hub import HfApi
from transformers import GPT2Config, GPT2LMHeadModel

config = GPT2Config(
    n_embd=8, n_layer=1, n_head=2, vocab_size=32, bos_token_id=0, eos_token_id=0
)
model = GPT2LMHeadModel(config).eval()
model.save_pretrained("saved")
HfApi().create_repo({REPO!r}, private=True)
HfApi().upload_folder(repo_id={REPO!r}, folder_path="saved")
loaded = GPT2LMHeadModel.from_pretrained({REPO!r})
tokens = torch.arange(32)[None]
assert torch.equal(loaded(tokens).logits, model(tokens).logits)
"""


def test_another_process_pushes_a_model_and_loads_it(local_hub: HubServer, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **local_hub.environment}
    command = [sys.executable, "-c", PUSH_AND_LOAD]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    assert local_hub.repository(REPO).private
    exchanged = [request.method for request in local_hub.requests(path_contains="lfs-storage")]
    assert exchanged == ["PUT", "GET"]


def test_the_server_runs_by_hand(local_hub: HubServer, tmp_path: Path) -> None:
    # the fixture is here for a client without a network and with a token
    port = HubServer(tmp_path / "for its port").port
    command = [sys.executable, "-m", "tests.helpers.hub_server", f"--port={port}"]
    process = subprocess.Popen(
        [*command, "--folder", str(tmp_path / "kept")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert f"HF_ENDPOINT=http://127.0.0.1:{port} " in process.stdout.readline()
        assert USER in process.stdout.readline()
        assert HfApi(endpoint=f"http://127.0.0.1:{port}").create_repo(REPO).repo_id == REPO
        assert process.stdout.readline() == "POST /api/repos/create 200\n"
    finally:
        process.kill()
        process.communicate()


def test_the_client_is_as_before_after_a_test(tmp_path: Path) -> None:
    def state() -> list[object]:
        return [dict(vars(constants)), dict(os.environ), HfApi().endpoint]

    before = state()
    with pytest.MonkeyPatch.context() as monkeypatch:
        point_client_at(HubServer(tmp_path), tmp_path, monkeypatch)
        assert state()[2] != before[2]
    assert state() == before
