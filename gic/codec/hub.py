"""Weights on the Hugging Face hub, through its own client ``huggingface_hub``: the extra ``hub``.

A repository there holds the weights file, ``model.safetensors``, which describes itself; ``config.json``, the same
description for the hub's pages; and a model card. Only safetensors are fetched, and no code.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gic.codec.weights_file import is_weights_file, read_safetensors
from gic.errors import ConfigError, DataError, GicError, MissingExtraError, require, words_of
from gic.files import write_bytes
from gic.version import __version__

SCHEME = "hf://"
WEIGHTS = "model.safetensors"
TAGS = ("gic", "image-compression", "learned-image-compression", "generative-compression", "diffusion")
_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"{_PART}/{_PART}")
"""The hub's name of a repository, OWNER/REPO."""
_REFERENCE = re.compile(rf"{SCHEME}({REPOSITORY.pattern})(?:@([\w.-]+))?(?:/([\w./-]+\.safetensors))?")


class Reference(NamedTuple):
    """Weights on the hub.

    Attributes:
        repository: OWNER/REPO.
        revision: Branch, tag or commit; None for the newest.
        file: The weights file in it.
    """

    repository: str
    revision: str | None = None
    file: str = WEIGHTS

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repository}{revision}" + (f"/{self.file}" if self.file != WEIGHTS else "")

    @property
    def file_name(self) -> str:
        """Name of a copy in a folder, from which :func:`of_file_name` tells the reference.

        >>> Reference("someone/gic-small", "v2").file_name
        'someone--gic-small@v2.safetensors'
        """
        revision = f"@{self.revision}" if self.revision else ""
        part = "" if self.file == WEIGHTS else "--" + self.file.removesuffix(".safetensors").replace("/", "--")
        return f"{self.repository.replace('/', '--')}{part}{revision}.safetensors"


def parse(text: str) -> Reference:
    """Read ``hf://OWNER/REPO``, with an optional ``@REVISION`` and ``/FILE.safetensors``.

    Raises:
        ConfigError: If it is none.

    >>> parse("hf://someone/gic-small@v2/other.safetensors")
    Reference(repository='someone/gic-small', revision='v2', file='other.safetensors')
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or ".." in text:
        raise ConfigError(
            f"{text} names no weights on the hub: write hf://OWNER/REPO, then @REVISION and /FILE.safetensors if needed"
        )
    return Reference(match[1], match[2], match[3] or WEIGHTS)


def of_file_name(stem: str) -> Reference | None:
    """The reference that a copy's name tells; None if it is no copy from the hub.

    >>> str(of_file_name("someone--gic-small@v2")), of_file_name("small-0.4")
    ('hf://someone/gic-small@v2', None)
    """
    name, _, revision = stem.partition("@")
    owner, _, rest = name.partition("--")
    repository, *folders = rest.split("--")
    if not REPOSITORY.fullmatch(f"{owner}/{repository}"):
        return None
    return Reference(
        f"{owner}/{repository}", revision or None, "/".join(folders) + ".safetensors" if folders else WEIGHTS
    )


def client() -> Any:
    """The hub's client.

    Raises:
        MissingExtraError: If it is not installed.
    """
    package = require("huggingface_hub", "hub")
    require("huggingface_hub.errors", "hub")
    return package


def download(reference: Reference) -> Path:
    """Fetch weights, or find them in the client's cache.

    Returns:
        The file in the cache.

    Raises:
        ConfigError: If they are not there, or cannot be fetched.
        MissingExtraError: If the client is not installed.
    """
    fetch = client().hf_hub_download
    with _explained(reference.repository, str(reference)):
        return Path(
            fetch(
                reference.repository,
                reference.file,
                revision=reference.revision,
                library_name="gic",
                library_version=__version__,
            )
        )


def cached() -> list[tuple[Reference, Path]]:
    """Weights of gic in the client's cache; none if the client is not installed."""
    try:
        package = client()
    except MissingExtraError:
        return []
    try:
        repositories = sorted(package.scan_cache_dir().repos, key=lambda repository: str(repository.repo_id))
    except (OSError, ValueError, package.errors.CacheNotFound):
        return []
    found: list[tuple[Reference, Path]] = []
    for repository in repositories:
        if repository.repo_type != "model":
            continue
        newest: dict[str, Path] = {}
        for revision in sorted(repository.revisions, key=lambda one: float(one.last_modified)):
            for file in revision.files:
                if file.file_path.suffix == ".safetensors" and is_weights_file(file.file_path):
                    newest[file.file_path.relative_to(revision.snapshot_path).as_posix()] = Path(file.file_path)
        found += [(Reference(str(repository.repo_id), None, name), path) for name, path in sorted(newest.items())]
    return found


def prepare(
    weights: Path, repository: str, folder: Path, *, card: str | Path | None = None, license: str | None = None
) -> None:
    """Write what :func:`push` uploads: the weights, their description, a model card and its pictures.

    Args:
        weights: Weights file, ``.safetensors``.
        repository: OWNER/REPO, which the card names.
        folder: Where to; it need not exist.
        card: As for :func:`push`.
        license: As for :func:`push`.

    Raises:
        ConfigError: If the file is no weights file, or the name is none.
        DataError: If the card cannot be read.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{repository} is no name of a repository on the hub: write OWNER/REPO")
    if weights.suffix != ".safetensors":
        raise ConfigError(f"{weights} is no weights file: make one of it with gic export {weights} -o FILE.safetensors")
    _, config, provenance = read_safetensors(weights, "np")
    text, pictures = model_card(repository, provenance, card=card, license=license)
    about = {"library": "gic", "gic_version": __version__, "codec": config, "provenance": provenance}
    write_bytes(folder / WEIGHTS, weights.read_bytes())
    write_bytes(folder / "config.json", f"{json.dumps(about, indent=2, sort_keys=True)}\n".encode())
    write_bytes(folder / "README.md", text.encode())
    for relative, picture in pictures.items():
        write_bytes(folder / relative, picture.read_bytes())


def push(
    weights: Path,
    repository: str,
    *,
    card: str | Path | None = None,
    license: str | None = None,
    private: bool | None = None,
    message: str = "Upload weights of gic",
) -> str:
    """Put a weights file on the hub, with its description and a model card; files of these names are replaced there.

    Args:
        weights: Weights file, ``.safetensors``.
        repository: OWNER/REPO; made if it is not there.
        card: A page in Markdown that becomes the model card; by default a short one is written. Pictures that it shows
            by a relative path go with it; its other relative links, which would lead nowhere, become plain text.
        license: Licence of the weights, by the hub's names: ``apache-2.0``, ``cc-by-4.0``, ...
        private: Whether a new repository is private; None leaves it to the owner's settings.
        message: Of the commit.

    Returns:
        The commit's address.

    Raises:
        ConfigError: If the file is no weights file, the name is none, or the hub refuses.
        DataError: If the card cannot be read.
        MissingExtraError: If the client is not installed.
    """
    with tempfile.TemporaryDirectory() as name:
        prepare(weights, repository, Path(name), card=card, license=license)
        package = client()
        with _explained(repository, f"{SCHEME}{repository}"):
            api = package.HfApi(library_name="gic", library_version=__version__)
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repository, folder_path=name, commit_message=message)
    return str(getattr(commit, "commit_url", commit))


def model_card(
    repository: str, provenance: dict[str, Any], *, card: str | Path | None = None, license: str | None = None
) -> tuple[str, dict[str, Path]]:
    """A model card in the hub's format: facts between two lines of ``---``, then Markdown.

    Args:
        repository: OWNER/REPO.
        provenance: What the weights file says of its training.
        card: A page in Markdown; by default a short one is written.
        license: The hub's name of the weights' licence.

    Returns:
        The card, and the pictures that go with it by their paths in the repository.

    Raises:
        DataError: If the page cannot be read.
    """
    facts = ["library_name: gic", "pipeline_tag: image-to-image"]
    facts += [f"license: {license}"] if license else []
    facts += ["tags:", *(f"- {tag}" for tag in TAGS)]
    use = (
        "```python\nimport gic\n\n"
        f'codec = gic.ImageCodec.from_pretrained("{repository}")\n'
        'data = codec.compress("photo.png", bpp=0.25)\n'
        "picture = codec.decompress(data, realism=0.8)\n```\n\n"
        f"or `gic compress photo.png --checkpoint {SCHEME}{repository}`, after `pip install 'gic-codec[hub]'`. "
        "A file is decoded with the weights that made it."
    )
    pictures: dict[str, Path] = {}
    if card is None:
        told = "\n".join(f"- {key}: {value}" for key, value in sorted(provenance.items()) if value is not None)
        body = (
            f"# {repository.partition('/')[2]}\n\nWeights of the image codec gic.\n\n{use}\n\n## Training\n\n{told}\n"
        )
    else:
        try:
            page = Path(card).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the card {card} cannot be read: {words_of(error)}") from error
        if page.startswith("---\n"):  # it has facts of its own
            return page, pictures
        title, _, rest = page.partition("\n")
        body = _portable(f"{title}\n\n{use}\n{rest}", Path(card).parent, pictures)
    return "---\n" + "\n".join(facts) + "\n---\n\n" + body, pictures


_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def _portable(page: str, folder: Path, pictures: dict[str, Path]) -> str:
    """A page without relative links, but for pictures, which are collected."""

    def replaced(link: re.Match[str]) -> str:
        shows, text, target = link.groups()
        path = folder / target
        if shows and path.is_file() and ".." not in Path(target).parts and not target.startswith("/"):
            pictures[Path(target).as_posix()] = path
            return link[0]
        return text

    return _LINK.sub(replaced, page)


@contextmanager
def _explained(repository: str, name: str) -> Iterator[None]:
    """Errors of the client, in words for the person at the terminal."""
    errors = client().errors
    login = "log in with: hf auth login"
    unreachable = "the hub cannot be reached"
    said: dict[str, Callable[[], str]] = {
        "GatedRepoError": lambda: f"{repository} asks to accept its terms: do so on its page on the hub, and {login}",
        "RepositoryNotFoundError": lambda: (
            f"there is no repository {repository} on the hub, or it is private: check its name, or {login}"
        ),
        "RevisionNotFoundError": lambda: f"{repository} has no such revision: {name}",
        "LocalEntryNotFoundError": lambda: (
            f"{unreachable}, and {name} is not in the cache: on a machine that reaches it, "
            f"gic models {name} --download FOLDER; here, set GIC_MODELS=FOLDER"
        ),
        "EntryNotFoundError": lambda: (
            f"{name} is not there: name a weights file that the repository has, {SCHEME}{repository}/FILE.safetensors"
        ),
        "LocalTokenNotFoundError": lambda: f"{repository} takes an account: {login}",
    }
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # it would tell of each attempt to reach the hub
    try:
        yield
    except GicError:
        raise
    except Exception as error:  # the client passes on those of several libraries
        if isinstance(error, MemoryError):
            raise
        for kind, words in said.items():
            if isinstance(error, getattr(errors, kind, ())):
                raise ConfigError(words()) from error
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise ConfigError(f"the hub refuses {name}: {login}, with a token that may do this") from error
        if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ConnectionError"):  # of httpx and others
            raise ConfigError(f"{unreachable} ({words_of(error)}): {name} takes a network") from error
        raise ConfigError(f"{name}: the hub's client reports {words_of(error)}") from error
    finally:
        log.setLevel(level)
