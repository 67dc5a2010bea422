"""The Hub's HTTP API over the repositories of the local Hub: from a request to its answer.

Holds what `huggingface_hub` calls to create and describe repositories; uploads and downloads are in
transfers.py. Xet storage is not offered, and pull requests, discussions and searches are answered
with 404. Sockets, faults and the record of requests are in hub_server.py.
"""

from typing import NamedTuple, cast, get_args

from tests.helpers.local_hub.card_rules import judge_card
from tests.helpers.local_hub.descriptions import (
    describe_account,
    describe_paths,
    describe_repository,
    list_commits,
    list_refs,
    list_tree,
)
from tests.helpers.local_hub.messages import Answer, Json, Request
from tests.helpers.local_hub.refusals import HubError
from tests.helpers.local_hub.repositories import (
    Account,
    Repositories,
    Repository,
    RepositoryKind,
    check_may_write,
)
from tests.helpers.local_hub.transfers import LfsStorage, commit_files, plan_commit, resolve_file

KINDS: tuple[RepositoryKind, ...] = get_args(RepositoryKind)


class NamedRepository(NamedTuple):
    """The repository that the body of a request names, and the rest of that body."""

    kind: RepositoryKind
    id: str
    body: Json


class HubApi:
    """Answers requests.

    Args:
        repositories: What there is.
        storage: Where LFS objects go and come from.
        endpoint: Where clients reach the API.
    """

    def __init__(self, repositories: Repositories, storage: LfsStorage, endpoint: str) -> None:
        self.repositories, self.storage, self.endpoint = repositories, storage, endpoint

    def answer(self, request: Request) -> Answer:
        """The answer to a request; refusals too are answers."""
        try:
            if request.parts[0] == "lfs-storage":
                # without the lock: objects are uploaded several at a time
                return self.storage.exchange_object(request, request.parts[1])
            request.read_body()
            with self.repositories.lock:
                return self._route(request, self._find_account(request))
        except HubError as error:
            return Answer.error(error)

    def _route(self, request: Request, account: Account | None) -> Answer:
        parts = request.parts
        match parts:
            case ["api", "whoami-v2"]:
                return describe_account(account)
            case ["api", "validate-yaml"]:
                return self._validate_card(request)
            case ["api", "repos", "create"]:
                return self._create_repository(request, account)
            case ["api", "repos", "delete"]:
                named = self._read_repository_name(request, account)
                repository = self.repositories.writable(named.kind, named.id, account)
                self.repositories.delete(repository)
                return Answer.json({})
            case ["api", kind, namespace, name, *rest] if kind in KINDS:
                return self._answer_about_repository(
                    request, account, cast(RepositoryKind, kind), f"{namespace}/{name}", rest
                )
        named_kind, parts = (parts[0], parts[1:]) if parts[0] in KINDS else ("models", parts)
        kind_of_file = cast(RepositoryKind, named_kind)
        match parts:
            case [namespace, name, "resolve", revision, *path] if request.method in ("GET", "HEAD"):
                id = f"{namespace}/{name}"
                repository = self.repositories.readable(kind_of_file, id, account)
                return resolve_file(repository, revision, "/".join(path), self.storage)
            case [namespace, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                id = f"{namespace}/{name.removesuffix('.git')}"
                self.repositories.writable(kind_of_file, id, account)
                return self.storage.plan_uploads(request)
        raise HubError(404, "Not found")

    def _find_account(self, request: Request) -> Account | None:
        """The account of the token; None without a token."""
        sent = request.headers.get("authorization")
        if sent is None:
            return None
        account = self.repositories.accounts.get(sent.removeprefix("Bearer "))
        if account is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return account

    def _validate_card(self, request: Request) -> Answer:
        verdict = judge_card(str(request.read_json()["content"]))
        status = 400 if verdict.errors else 200
        if request.headers.get("accept") == "text/plain":
            return Answer(
                status, {"Content-Type": "text/plain"}, "\n".join(verdict.errors).encode()
            )
        messages = {
            "errors": [{"message": error} for error in verdict.errors],
            "warnings": [{"message": warning} for warning in verdict.warnings],
        }
        return Answer.json(messages, status)

    def _create_repository(self, request: Request, account: Account | None) -> Answer:
        kind, id, wanted = self._read_repository_name(request, account)
        check_may_write(account, id.split("/")[0])
        assert account is not None
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self.endpoint}/{prefix}{id}"
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        try:
            self.repositories.create(kind, id, private=private, author=account.user)
        except HubError as error:
            error.fields["url"] = url
            raise
        return Answer.json({"url": url, "name": id, "private": private})

    def _read_repository_name(self, request: Request, account: Account | None) -> NamedRepository:
        """The repository that a body names; without a namespace it is the user's."""
        body = request.read_json()
        if account is None:
            raise HubError(401, "Invalid username or password.")
        kind = cast(RepositoryKind, f"{body.get('type') or 'model'}s")
        return NamedRepository(
            kind, f"{body.get('organization') or account.user}/{body['name']}", body
        )

    def _answer_about_repository(
        self,
        request: Request,
        account: Account | None,
        kind: RepositoryKind,
        id: str,
        rest: list[str],
    ) -> Answer:
        """What is under `/api/models/NAMESPACE/NAME`."""
        readable, writable = self.repositories.readable, self.repositories.writable
        match request.method, rest:
            case "GET", []:
                return describe_repository(request, readable(kind, id, account), "main")
            case "GET", ["revision", revision]:
                return describe_repository(request, readable(kind, id, account), revision)
            case "GET", ["tree", revision, *folder]:
                return list_tree(request, readable(kind, id, account), revision, "/".join(folder))
            case "POST", ["paths-info", revision]:
                return describe_paths(request, readable(kind, id, account), revision)
            case "GET", ["refs"]:
                return list_refs(readable(kind, id, account))
            case "GET", ["commits", revision]:
                return list_commits(readable(kind, id, account), revision)
            case "GET", ["auth-check"]:
                readable(kind, id, account)
                return Answer.json({})
            case "GET", ["auth-check", "write"]:
                writable(kind, id, account)
                return Answer.json({})
            case "PUT", ["settings"]:
                return self._change_settings(request, writable(kind, id, account))
            case "POST" | "DELETE", ["branch" | "tag" as kind_of_ref, name]:
                return self._change_ref(request, writable(kind, id, account), kind_of_ref, name)
            case "POST", ["preupload", revision]:
                return plan_commit(request, writable(kind, id, account), revision)
            case "POST", ["commit", revision]:
                repository = writable(kind, id, account)
                assert account is not None
                return commit_files(
                    request,
                    repository,
                    revision,
                    contents=self.repositories.contents,
                    author=account.user,
                    endpoint=self.endpoint,
                )
        readable(kind, id, account)
        raise HubError(404, "Not found")

    def _change_settings(self, request: Request, repository: Repository) -> Answer:
        changes = request.read_json()
        if "visibility" in changes:
            repository.private = changes["visibility"] == "private"
        if "gated" in changes:
            repository.gated = cast(bool | str, changes["gated"])
        return Answer.json(changes)

    def _change_ref(
        self, request: Request, repository: Repository, kind_of_ref: str, name: str
    ) -> Answer:
        """Creates or deletes a branch or a tag; `name` is the tagged revision of a new tag."""
        refs = repository.branches if kind_of_ref == "branch" else repository.tags
        body = request.read_json()
        if request.method == "DELETE":
            if name == "main" or name not in refs:
                status = 403 if name == "main" else 404
                raise HubError(status, f"Cannot delete {name}", "RevisionNotFound")
            del refs[name]
            return Answer.json({})
        if kind_of_ref == "branch":
            created, start = name, str(body.get("startingPoint") or "main")
        else:
            created, start = str(body["tag"]), name
        if created.startswith("refs/"):
            raise HubError(400, f"Invalid reference for a {kind_of_ref}: {created}")
        if created in refs:
            raise HubError(409, f"Reference already exists: {created}")
        refs[created] = repository.find_commit(start).sha
        return Answer.json({})
