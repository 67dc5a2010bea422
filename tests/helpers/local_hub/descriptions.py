"""What the local Hub tells of an account, and of a repository: its files, refs and commits."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import parse_qs

from tests.helpers.local_hub.card_rules import read_front_matter
from tests.helpers.local_hub.contents import StoredFile, git_blob_sha1
from tests.helpers.local_hub.messages import Answer, Json, Request
from tests.helpers.local_hub.refusals import HubError
from tests.helpers.local_hub.repositories import Account, Commit, Repository


def describe_account(account: Account | None) -> Answer:
    if account is None:
        raise HubError(401, "Invalid username or password.")
    organizations = [
        {"type": "org", "name": name, "fullname": name, "roleInOrg": "write"}
        for name in account.organizations
    ]
    role = "write" if account.can_write else "read"
    token = {"displayName": "local", "role": role, "createdAt": "2024-01-01T00:00:00.000Z"}
    return Answer.json(
        {
            "type": "user",
            "id": git_blob_sha1(account.user.encode())[:24],
            "name": account.user,
            "fullname": account.user,
            "isPro": False,
            "canPay": False,
            "emailVerified": True,
            "orgs": organizations,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def describe_repository(request: Request, repository: Repository, revision: str) -> Answer:
    commit = repository.find_commit(revision)
    readme = commit.files.get("README.md")
    text = readme.contents.read_text(encoding="utf-8") if readme else ""
    metadata = read_front_matter(text).metadata or {}
    tags = metadata.get("tags")
    info: Json = {
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.namespace,
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": repository.created,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags if isinstance(tags, list) else [],
        "siblings": [
            _describe_sibling(path, stored, "blobs" in request.query)
            for path, stored in commit.files.items()
        ],
    }
    for field_name in ("library_name", "pipeline_tag", "model-index"):
        if field_name in metadata:
            info[field_name] = metadata[field_name]
    if metadata:
        info["cardData"] = metadata
    return Answer.json(info)


def list_tree(request: Request, repository: Repository, revision: str, folder: str) -> Answer:
    commit = repository.find_commit(revision)
    entries = _tree_entries(commit, folder)
    if folder and not entries:
        # refuses as for a missing file
        repository.find_file(commit, f"{folder}/")
    if request.query.get("recursive", ["false"])[0].lower() != "true":
        depth = folder.count("/") + 1 if folder else 0
        entries = [entry for entry in entries if str(entry["path"]).count("/") == depth]
    return Answer.json(entries)


def describe_paths(request: Request, repository: Repository, revision: str) -> Answer:
    commit = repository.find_commit(revision)
    paths = parse_qs(b"".join(request.body).decode()).get("paths", [])
    entries = {str(entry["path"]): entry for entry in _tree_entries(commit, "")}
    return Answer.json([entries[path] for path in paths if path in entries])


def list_refs(repository: Repository) -> Answer:
    def describe(names: Mapping[str, str], prefix: str) -> list[Json]:
        return [
            {"name": name, "ref": f"refs/{prefix}/{name}", "targetCommit": sha}
            for name, sha in names.items()
        ]

    return Answer.json(
        {
            "branches": describe(repository.branches, "heads"),
            "tags": describe(repository.tags, "tags"),
            "converts": [],
            "pullRequests": [],
        }
    )


def list_commits(repository: Repository, revision: str) -> Answer:
    return Answer.json(
        [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in repository.history(revision)
        ]
    )


def _describe_sibling(path: str, stored: StoredFile, with_metadata: bool) -> Json:
    described: Json = {"rfilename": path}
    if with_metadata:
        described |= {"size": stored.size, "blobId": stored.oid}
        if stored.sha256 is not None:
            described["lfs"] = {
                "size": stored.size,
                "sha256": stored.sha256,
                "pointerSize": stored.pointer_bytes,
            }
    return described


def _tree_entries(commit: Commit, folder: str) -> list[Json]:
    """Files and folders under a folder of a commit, in the order of their paths."""
    entries: dict[str, Json] = {}
    prefix = f"{folder}/" if folder else ""
    for path, stored in commit.files.items():
        if not path.startswith(prefix):
            continue
        for parent in PurePosixPath(path).parents:
            name = str(parent)
            if name != "." and name.startswith(prefix):
                oid = git_blob_sha1(f"{commit.sha} {name}".encode())
                entries[name] = {"type": "directory", "path": name, "oid": oid, "size": 0}
        entries[path] = {"type": "file", "path": path, "oid": stored.oid, "size": stored.size}
        if stored.sha256 is not None:
            entries[path]["lfs"] = {
                "oid": stored.sha256,
                "size": stored.size,
                "pointerSize": stored.pointer_bytes,
            }
    return [entries[name] for name in sorted(entries)]
