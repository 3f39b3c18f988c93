"""A stand-in for the Hugging Face hub: repositories are folders, and the client is this module."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ERRORS = ("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "EntryNotFoundError", "CacheNotFound")


class HubOnFiles:
    """A hub in a folder: ``repositories/OWNER/REPO/REVISION/FILE``; what was fetched lies in ``cache``.

    Args:
        folder: Where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.repositories, self.cache = folder / "repositories", folder / "cache"
        self.reachable = True
        self.kind = "model"
        self.gated: set[str] = set()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.errors: Any = SimpleNamespace()
        for name in ERRORS:
            setattr(self.errors, name, type(name, (Exception,), {}))
        missing = type("LocalEntryNotFoundError", (self.errors.EntryNotFoundError,), {})
        self.errors.LocalEntryNotFoundError = missing

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of ``huggingface_hub`` for gic, and not for the other packages that use it."""
        monkeypatch.setattr("gic.codec.hub.client", lambda: self)

    def HfApi(self, **_: str) -> HubOnFiles:  # noqa: N802
        return self

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None = None, **_: str) -> str:
        cached = self.cache / repo_id / (revision or "main") / filename
        if not self.reachable:
            if cached.is_file():
                return str(cached)
            raise self.errors.LocalEntryNotFoundError("no network")
        if repo_id in self.gated:
            raise self.errors.GatedRepoError(repo_id)
        if not (self.repositories / repo_id).is_dir():
            raise self.errors.RepositoryNotFoundError(repo_id)
        if not (self.repositories / repo_id / (revision or "main")).is_dir():
            raise self.errors.RevisionNotFoundError(revision)
        source = self.repositories / repo_id / (revision or "main") / filename
        if not source.is_file():
            raise self.errors.EntryNotFoundError(filename)
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, cached)
        return str(cached)

    def scan_cache_dir(self) -> SimpleNamespace:
        repositories = []
        for folder in sorted(self.cache.glob("*/*")):
            revisions = [
                SimpleNamespace(
                    last_modified=revision.stat().st_mtime,
                    snapshot_path=revision,
                    files=[SimpleNamespace(file_path=path) for path in revision.rglob("*") if path.is_file()],
                )
                for revision in folder.iterdir()
            ]
            repositories.append(
                SimpleNamespace(
                    repo_id=folder.relative_to(self.cache).as_posix(), repo_type=self.kind, revisions=revisions
                )
            )
        return SimpleNamespace(repos=repositories)

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", options))
        (self.repositories / repo_id / "main").mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.repositories / repo_id / "main", dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"commit of {repo_id}: {commit_message}")
