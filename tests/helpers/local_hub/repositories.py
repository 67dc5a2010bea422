"""Repositories of the local Hub: contents, commits, branches, tags, and who may read and write.

Which repositories exist and what their commits hold is kept in memory; the contents of files are in
contents.py. Nothing here knows HTTP.
"""

import fnmatch
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Literal

from tests.helpers.local_hub.contents import ContentStore, StoredFile
from tests.helpers.local_hub.refusals import HubError

# where the Hub, too, puts a file into LFS by its name; any file of another kind of data follows by
# its contents
LFS_PATTERNS = ("*.bin", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.parquet", "*.pt", "*.pth")
GIT_ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in (*LFS_PATTERNS, "*.safetensors", "*tfevents*")
)
MAX_REGULAR_BYTES = 10 * 1000 * 1000
"""A file above this goes into LFS whatever its name."""

RepositoryKind = Literal["models", "datasets", "spaces"]


@dataclass(frozen=True)
class Account:
    """Whom a token belongs to, and whether it may write."""

    user: str
    can_write: bool
    organizations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace == self.user or namespace in self.organizations


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files, by path."""

    sha: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    files: Mapping[str, StoredFile]


@dataclass
class Repository:
    """A repository with its history; `change_files` is the only way to a new commit."""

    kind: RepositoryKind
    id: str
    private: bool
    created: str
    gated: bool | str = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def find_commit(self, revision: str) -> Commit:
        """The commit of a branch, a tag, or a whole or shortened SHA."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(name) or self.tags.get(name)
        if sha is None and len(name) >= 7:
            sha = next((commit for commit in self.commits if commit.startswith(name)), None)
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def find_file(self, commit: Commit, path: str) -> StoredFile:
        if path not in commit.files:
            raise HubError(
                404, "Entry not found", "EntryNotFound", headers={"X-Repo-Commit": commit.sha}
            )
        return commit.files[path]

    def history(self, revision: str) -> Iterator[Commit]:
        """Commits of a revision, newest first."""
        commit: Commit | None = self.find_commit(revision)
        while commit is not None:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None

    def change_files(
        self,
        branch: str,
        changed: Mapping[str, StoredFile | None],
        *,
        title: str,
        author: str,
        description: str = "",
        expected_parent: str | None = None,
    ) -> Commit:
        """Commits files, None for a deleted one, to a branch that exists.

        Raises:
            HubError: 404 without the branch, 412 if its head is not `expected_parent`.
        """
        parent = self.branches.get(branch)
        if parent is None and self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if expected_parent and not (parent or "").startswith(expected_parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.commits[parent].files) if parent else {}
        for path, stored in changed.items():
            files.pop(path, None)
            if stored is not None:
                files[path] = stored
        date = utc_now()
        tree = {path: files[path].oid for path in sorted(files)}
        identity = json.dumps([tree, parent, title, description, author, date, len(self.commits)])
        sha = hashlib.sha1(identity.encode()).hexdigest()
        commit = Commit(sha, parent, title, description, author, date, dict(sorted(files.items())))
        self.commits[sha] = commit
        self.branches[branch] = sha
        return commit

    def goes_into_lfs(self, commit: Commit, path: str, size: int, sample: bytes) -> bool:
        """Whether a file is put into LFS: by `.gitattributes`, size, or first bytes."""
        if size == 0:
            return False
        attributes = commit.files.get(".gitattributes")
        lines = attributes.contents.read_text().splitlines() if attributes else []
        name = PurePosixPath(path).name
        return (
            size > MAX_REGULAR_BYTES
            or b"\0" in sample
            or any(
                "filter=lfs" in line and fnmatch.fnmatch(name, line.split()[0]) for line in lines
            )
        )


class Repositories:
    """All repositories of the local Hub, and its accounts by token."""

    def __init__(self, folder: Path, accounts: Mapping[str, Account]) -> None:
        self.contents = ContentStore(folder)
        self.accounts = dict(accounts)
        self.lock = threading.RLock()
        self._repositories: dict[tuple[RepositoryKind, str], Repository] = {}

    def create(self, kind: RepositoryKind, id: str, *, private: bool, author: str) -> Repository:
        """A new repository with the first commit that the Hub makes."""
        if (kind, id) in self._repositories:
            raise HubError(409, f"You already created this {kind[:-1]} repo: {id}")
        repository = Repository(kind, id, private, utc_now())
        attributes = self.contents.add_regular(GIT_ATTRIBUTES.encode())
        repository.change_files(
            "main", {".gitattributes": attributes}, title="initial commit", author=author
        )
        self._repositories[kind, id] = repository
        return repository

    def delete(self, repository: Repository) -> None:
        del self._repositories[repository.kind, repository.id]

    def find(self, kind: RepositoryKind, id: str) -> Repository | None:
        return self._repositories.get((kind, id))

    def readable(self, kind: RepositoryKind, id: str, reader: Account | None) -> Repository:
        """A repository that an account may read; the others do not exist for it.

        The Hub answers 401 to whom it does not know: the repository might be there for a login.
        """
        repository = self.find(kind, id)
        visible = repository is not None and (
            not repository.private or (reader is not None and reader.owns(repository.namespace))
        )
        if repository is None or not visible:
            raise HubError(404 if reader else 401, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, kind: RepositoryKind, id: str, writer: Account | None) -> Repository:
        """A repository that an account may change."""
        repository = self.readable(kind, id, writer)
        check_may_write(writer, repository.namespace)
        return repository


def check_may_write(writer: Account | None, namespace: str) -> None:
    """Refuses without a login, with a token that only reads, and in another's namespace."""
    if writer is None:
        raise HubError(401, "Invalid username or password.")
    if not writer.can_write:
        raise HubError(403, "Forbidden: you must use a write token to change a repository")
    if not writer.owns(namespace):
        raise HubError(
            403, f'Forbidden: you have no rights to write under the namespace "{namespace}"'
        )


def utc_now() -> str:
    """Now, as the Hub writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
