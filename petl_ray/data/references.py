"""Where rows come from: files and Hugging Face ids, found, and named by the digest of their content."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from petl_ray.data.nearness import hint
from petl_ray.errors import DataError
from petl_ray.fingerprint import sha256_file, sha256_of

_HUB = re.compile(r"hf:(?P<id>[^@#:]+)(?::(?P<config>[^@#]+))?(?:@(?P<revision>[^#]+))?(?:#(?P<split>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Files:
    """One path, or all files that a path with `*`, `?` or `[…]` finds, by name."""

    pattern: str

    @property
    def uri(self) -> str:
        """The reference as text, the same in every working directory."""
        return self.pattern

    def paths(self, where: str) -> list[Path]:
        """The files, sorted; DataError about `where` if there is none."""
        path = Path(self.pattern)
        if path.is_file():
            return [path]
        found = sorted(found for found in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if found.is_file())
        if not found:
            raise _missing(where, path)
        return found

    def digest(self, where: str) -> str:
        """sha256 of the file; for several, of their sha256 in the order of their names."""
        paths = self.paths(where)
        try:
            digests = [sha256_file(path) for path in paths]
        except OSError as error:
            raise DataError(where, f"{self.pattern} cannot be read", str(error.strerror).lower()) from error
        return digests[0] if len(digests) == 1 else sha256_of(digests)


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face Hub at one revision, or a local directory in the same layout."""

    id: str
    config: str | None
    revision: str | None
    split: str

    @property
    def directory(self) -> Path | None:
        """The local directory, if it is one and no hub id."""
        return Path(self.id).expanduser().absolute() if self.id[0] in "./~" else None

    @property
    def uri(self) -> str:
        """The reference as text, the same in every working directory."""
        config = f":{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.directory or self.id}{config}{revision}#{self.split}"

    def pinned(self, where: str) -> Hub:
        """The same with its revision as a commit (40 hex digits); asks the hub unless it is one already."""
        if self.directory is not None or _COMMIT.fullmatch(self.revision or ""):
            return self
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

        try:
            commit = HfApi().dataset_info(self.id, revision=self.revision).sha
        except RepositoryNotFoundError as error:
            raise DataError(where, f"no data set {self.id!r} on the hub", "or it is private") from error
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            raise DataError(
                where,
                f"{self.uri} names no commit and the hub cannot be asked",
                str(error).splitlines()[0],
                "Write hf:ID@COMMIT with the 40 hex digits of a commit",
            ) from error
        return replace(self, revision=commit)

    def digest(self, where: str) -> str:
        """sha256 over id, config, commit and split; of a local directory, over its files instead of id and commit."""
        source: object = [self.id, self.revision]
        if self.directory is not None:
            if not self.directory.is_dir():
                raise _missing(where, self.directory)
            files = [path for path in sorted(self.directory.rglob("*")) if path.is_file()]
            named = {path.relative_to(self.directory).as_posix(): path for path in files}
            source = {name: sha256_file(path) for name, path in named.items() if not name.startswith(".")}
        return sha256_of({"source": source, "config": self.config, "split": self.split})


def parse_reference(uri: str, side: str, where: str) -> Files | Hub:
    """The reference that `uri` writes; `side` is the hub split if it names none. Raises DataError about `where`."""
    if not uri.startswith("hf:"):
        if "://" in uri:
            raise DataError(where, f"got {uri!r}", "rows are read from files and from hf: ids", "Give a path")
        return Files(str(Path(uri).expanduser().absolute()))
    match = _HUB.fullmatch(uri)
    if match is None:
        raise DataError(where, f"got {uri!r}", do="Write hf:org/name[:config][@revision][#split]")
    return Hub(match["id"], match["config"], match["revision"], match["split"] or side)


def _missing(where: str, path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(where, f"no file {path}", f"there is no folder {folder}", "Check the path")
    siblings = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    return DataError(where, f"no file {path}", do=hint(path.name, siblings, "That folder is empty"))
