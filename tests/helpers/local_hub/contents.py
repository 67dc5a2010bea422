"""Contents of files of the local Hub, in a folder: git blobs by SHA-1, LFS objects by SHA-256."""

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from tests.helpers.local_hub.refusals import HubError


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit.

    Attributes:
        oid: SHA-1 of the git blob: of the contents, or of the LFS pointer.
        size: Bytes of the contents.
        sha256: Of the contents where they are in LFS.
        contents: Where they are stored.
    """

    oid: str
    size: int
    sha256: str | None
    contents: Path

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    @property
    def pointer_bytes(self) -> int:
        return len(lfs_pointer(self.sha256 or "", self.size))


class ContentStore:
    """Contents of files in a folder: regular ones by git blob, LFS objects by SHA-256."""

    def __init__(self, folder: Path) -> None:
        self._regular, self._lfs = folder / "blobs", folder / "lfs"
        self._received = folder / "received"
        for part in (self._regular, self._lfs, self._received):
            part.mkdir(parents=True, exist_ok=True)

    def add_regular(self, contents: bytes) -> StoredFile:
        oid = git_blob_sha1(contents)
        (self._regular / oid).write_bytes(contents)
        return StoredFile(oid, len(contents), None, self._regular / oid)

    def add_lfs(self, sha256: str, chunks: Iterable[bytes]) -> None:
        """Stores an LFS object, and refuses contents of another SHA-256."""
        temporary, digest = self._received / uuid.uuid4().hex, hashlib.sha256()
        try:
            with temporary.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise HubError(HTTPStatus.BAD_REQUEST, f"the contents are not those of {sha256}")
        except BaseException:
            temporary.unlink()
            raise
        temporary.replace(self.lfs_path(sha256))

    def add_part(self, sha256: str, number: int, chunks: Iterable[bytes]) -> str:
        """Stores a part of an LFS object, and returns its ETag."""
        contents = b"".join(chunks)
        self._part_path(sha256, number).write_bytes(contents)
        return hashlib.md5(contents).hexdigest()

    def join_parts(self, sha256: str, numbers: Iterable[int]) -> None:
        """Makes an LFS object of its parts."""
        paths = [self._part_path(sha256, number) for number in numbers]
        if missing := [path.name for path in paths if not path.exists()]:
            raise HubError(HTTPStatus.BAD_REQUEST, f"parts not received: {missing}")
        self.add_lfs(sha256, (path.read_bytes() for path in paths))
        for path in paths:
            path.unlink()

    def find_lfs(self, sha256: str) -> StoredFile | None:
        path = self.lfs_path(sha256)
        if not path.exists():
            return None
        size = path.stat().st_size
        return StoredFile(git_blob_sha1(lfs_pointer(sha256, size)), size, sha256, path)

    def lfs_path(self, sha256: str) -> Path:
        if len(sha256) != 64 or not sha256.isalnum():
            raise HubError(HTTPStatus.BAD_REQUEST, f"not a SHA-256: {sha256!r}")
        return self._lfs / sha256

    def _part_path(self, sha256: str, number: int) -> Path:
        return self._received / f"{self.lfs_path(sha256).name}.{number}"


def git_blob_sha1(contents: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in the place of an LFS object."""
    version = "https://git-lfs.github.com/spec/v1"
    return f"version {version}\noid sha256:{sha256}\nsize {size}\n".encode()
