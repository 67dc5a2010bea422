"""Uploads to and downloads from the local Hub: LFS objects, commits, files."""

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import cast
from urllib.parse import quote

from tests.helpers.local_hub.contents import ContentStore, StoredFile
from tests.helpers.local_hub.messages import Answer, Json, Request
from tests.helpers.local_hub.refusals import HubError
from tests.helpers.local_hub.repositories import Repository


class LfsStorage:
    """The storage of LFS objects, which asks for no token.

    Args:
        contents: Where the objects are kept.
        url: Where clients reach the storage.
        part_bytes: Objects above this are uploaded in parts of this size.
    """

    def __init__(self, contents: ContentStore, url: str, part_bytes: int) -> None:
        self.contents, self.url, self.part_bytes = contents, url, part_bytes

    def plan_uploads(self, request: Request) -> Answer:
        """The LFS batch API: where each object goes; nowhere if it is here already."""
        planned: list[Json] = []
        for wanted in cast(list[Json], request.read_json()["objects"]):
            sha256, size = str(wanted["oid"]), cast(int, wanted["size"])
            entry: Json = {"oid": sha256, "size": size, "authenticated": True}
            if self.contents.find_lfs(sha256) is None:
                entry["actions"] = {"upload": self._plan_upload(sha256, size)}
            planned.append(entry)
        return Answer.json({"transfer": "basic", "objects": planned})

    def _plan_upload(self, sha256: str, size: int) -> Json:
        url = self.object_url(sha256)
        if size <= self.part_bytes:
            return {"href": url, "header": {}}
        parts = range(1, -(-size // self.part_bytes) + 1)
        urls = {str(number): f"{url}?partNumber={number}" for number in parts}
        return {"href": url, "header": {"chunk_size": str(self.part_bytes), **urls}}

    def object_url(self, sha256: str) -> str:
        return f"{self.url}/lfs-storage/{sha256}"

    def exchange_object(self, request: Request, sha256: str) -> Answer:
        """Takes an object, a part of one or the word that all parts are sent; or hands it out."""
        if request.method == "PUT" and "partNumber" in request.query:
            number = int(request.query["partNumber"][0])
            etag = self.contents.add_part(sha256, number, request.body)
            return Answer(200, {"ETag": f'"{etag}"'})
        if request.method == "PUT":
            self.contents.add_lfs(sha256, request.body)
            return Answer()
        if request.method == "POST":
            parts = cast(list[Json], request.read_json()["parts"])
            self.contents.join_parts(sha256, [cast(int, part["partNumber"]) for part in parts])
            return Answer.json({"success": True})
        stored = self.contents.find_lfs(sha256)
        if stored is None:
            raise HubError(404, "no such object")
        return Answer(200, {"ETag": f'"{sha256}"'}, stored.contents)


def plan_commit(request: Request, repository: Repository, revision: str) -> Answer:
    """Says of each file whether it goes into LFS, and what is there of this name."""
    commit = repository.find_commit(revision)
    planned = []
    for wanted in cast(list[Json], request.read_json()["files"]):
        path, sample = str(wanted["path"]), base64.b64decode(str(wanted["sample"]))
        in_lfs = repository.goes_into_lfs(commit, path, cast(int, wanted["size"]), sample)
        present = commit.files.get(path)
        planned.append(
            {
                "path": path,
                "uploadMode": "lfs" if in_lfs else "regular",
                "shouldIgnore": False,
                "oid": present.etag if present else None,
            }
        )
    return Answer.json({"files": planned})


def commit_files(
    request: Request,
    repository: Repository,
    revision: str,
    *,
    contents: ContentStore,
    author: str,
    endpoint: str,
) -> Answer:
    """Makes a commit of the lines of JSON that a client sends: a header, then an operation each."""
    lines = [json.loads(line) for line in b"".join(request.body).splitlines() if line.strip()]
    if "create_pr" in request.query:
        raise HubError(400, "pull requests are not served here")
    headers = [line["value"] for line in lines if line["key"] == "header"]
    if not headers or not headers[0].get("summary"):
        raise HubError(400, "a commit needs a summary")
    if revision not in repository.branches:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    present = repository.find_commit(revision).files
    changed: dict[str, StoredFile | None] = {}
    for line in lines:
        if line["key"] != "header":
            changed |= _read_operation(line["key"], line["value"], present, contents)
    commit = repository.change_files(
        revision,
        changed,
        title=headers[0]["summary"],
        description=headers[0].get("description", ""),
        author=author,
        expected_parent=headers[0].get("parentCommit"),
    )
    url = f"{endpoint}/{repository.id}/commit/{commit.sha}"
    return Answer.json({"success": True, "commitOid": commit.sha, "commitUrl": url})


def _read_operation(
    key: str, value: Mapping[str, str], present: Iterable[str], contents: ContentStore
) -> dict[str, StoredFile | None]:
    """The files that one line of a commit adds, or None for those that it deletes."""
    path = value["path"]
    if key == "file":
        return {path: contents.add_regular(base64.b64decode(value["content"]))}
    if key == "lfsFile":
        stored = contents.find_lfs(value["oid"])
        if stored is None:
            raise HubError(400, f"LFS pointer of {path} points to no uploaded object")
        return {path: stored}
    deleted = {
        "deletedFile": [name for name in present if name == path],
        "deletedFolder": [name for name in present if name.startswith(path.rstrip("/") + "/")],
    }.get(key)
    if deleted is None:
        raise HubError(400, f"unknown operation {key}")
    if not deleted:
        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    return dict.fromkeys(deleted)


def resolve_file(repository: Repository, revision: str, path: str, storage: LfsStorage) -> Answer:
    """Hands out a file; one of LFS by redirecting to the storage."""
    commit = repository.find_commit(revision)
    stored = repository.find_file(commit, path)
    headers = {
        "X-Repo-Commit": commit.sha,
        "ETag": f'"{stored.etag}"',
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(PurePosixPath(path).name)}",
    }
    if stored.sha256 is None:
        return Answer(200, headers, stored.contents)
    headers |= {
        "X-Linked-Size": str(stored.size),
        "X-Linked-ETag": f'"{stored.sha256}"',
        "Location": storage.object_url(stored.sha256),
    }
    return Answer(302, headers)
