"""What errors tell to install works where they are told."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gic.errors
from gic.errors import MissingExtraError, counted, install_command, require
from gic.version import DISTRIBUTION, __version__


def test_pip_knows_the_package_by_one_name(repository: Path) -> None:
    lines = (repository / "pyproject.toml").read_text().splitlines()
    assert any(line.startswith(f'name = "{DISTRIBUTION}"') for line in lines)
    own = [line for line in lines if "[train,baselines,hub]" in line]
    assert [line.strip() for line in own] == [f'"{DISTRIBUTION}[train,baselines,hub]",']
    assert DISTRIBUTION != "gic"  # another project's


@pytest.mark.parametrize("extra", ["train", "baselines"])
def test_a_checkout_installs_an_extra_from_itself(extra: str, repository: Path) -> None:
    words = shlex.split(install_command(extra))
    assert words == ["pip", "install", "-e", f"{repository}[{extra}]"]
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package", extra)
    assert install_command(extra) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        (None, None),
        ({"url": "file:///tmp/gic_codec-0.1.0-py3-none-any.whl", "archive_info": {}}, "file:///tmp/gic_codec-0.1.0"),
        ({"url": "file:///home/me/gic", "dir_info": {}}, "file:///home/me/gic"),
        (
            {"url": "https://example.org/gic", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            "git+https://example.org/gic",
        ),
    ],
)
def test_an_installed_package_takes_the_extra_from_where_it_came(origin, url, tmp_path: Path) -> None:
    package = tmp_path / "gic"
    package.mkdir()
    for name in ("errors.py", "files.py", "version.py"):
        (package / name).write_text(Path(gic.errors.__file__).with_name(name).read_text())
    (package / "__init__.py").touch()
    about = tmp_path / f"{DISTRIBUTION.replace('-', '_')}-{__version__}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {__version__}\n")
    if origin is not None:
        (about / "direct_url.json").write_text(json.dumps(origin))
    code = "from gic.errors import install_command; print(install_command('train'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
    pip, install, name = shlex.split(done.stdout)
    wanted = Requirement(name)
    assert (pip, install, wanted.name, wanted.extras) == ("pip", "install", DISTRIBUTION, {"train"})
    assert (wanted.url or "").startswith(url or "") and (wanted.url is None) == (url is None)


def test_one_thing_is_not_several() -> None:
    assert [counted(number, "shard") for number in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
