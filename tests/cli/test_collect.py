"""Records of machines that share no folder, brought together over an object store."""

from __future__ import annotations

import pytest

from app import collect
from app.errors import ConfigError, OutputError


def job(folder, num):
    (folder / str(num)).mkdir(parents=True)
    (folder / str(num) / "record.json").write_text(f"record {num}")
    (folder / str(num) / "compile.log").write_text("stays where it is")


@pytest.fixture(params=["folder", "s3"])
def url(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "shared")
    request.getfixturevalue("credentials").setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
    pytest.importorskip("s3fs").S3FileSystem(skip_instance_cache=True).mkdir("collected")
    return "s3://collected/sweep"


def test_what_jobs_put_is_brought_together(url, tmp_path):
    for num in (0, 1):
        job(tmp_path / f"machine-{num}", num)
        collect.put(tmp_path / f"machine-{num}" / str(num), url, str(num))
    collect.get(url, tmp_path / "here")
    found = {path.relative_to(tmp_path / "here").as_posix() for path in (tmp_path / "here").rglob("*.*")}
    assert found == {"0/record.json", "1/record.json"}
    assert (tmp_path / "here" / "1" / "record.json").read_text() == "record 1"


def test_what_nobody_can_write_or_open_is_said(tmp_path):
    job(tmp_path, 0)
    with pytest.raises(OutputError, match=r"sweep\.collect='/proc/nowhere'"):
        collect.put(tmp_path / "0", "/proc/nowhere", "0")
    with pytest.raises(ConfigError, match="unknown-protocol"):
        collect.get("unknown-protocol://x", tmp_path)
