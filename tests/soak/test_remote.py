"""One machine compiles, another fetches: the remote tier through the command line."""

from __future__ import annotations

import pytest

from app.store.trust import create_key

fsspec = pytest.importorskip("fsspec")

MODEL = """
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) + 1.0
"""


def test_what_one_machine_compiles_another_fetches_and_a_stranger_s_is_refused(
    run_app, module_file, fresh_store, tmp_path, num_objects, s3, credentials
):
    module_file("shared_model", MODEL)
    remote = tmp_path / "remote"
    remote.mkdir()
    ours = create_key(tmp_path / "ours.pem")
    stranger = create_key(tmp_path / "stranger.pem")
    inputs = "model.inputs=[{name: x, shape: [batch, 4]}]"
    args = ["model=custom", "model.target=shared_model:Model", inputs, "weights=external", "cache.trust=signed"]
    args += [f"cache.remote={remote}", "task=compile"]
    no_compiler = {**module_file.env, "CXX": "/nonexistent"}

    def there(place, *more):
        return [*args, f"cache.dir={tmp_path / place}", *more]

    writing = ["cache.remote_mode=read-write", f"cache.signing_key={tmp_path / 'ours.pem'}"]
    made = run_app([*args, f"cache.dir={fresh_store}", *writing], env=module_file.env)
    assert (made.code, made.record["cache"]["outcome"]) == (0, "miss"), made.stderr
    assert "upload" in made.record["phases_s"]
    assert {path.relative_to(remote).parts[0] for path in remote.rglob("*") if path.is_file()} == {
        "objects",
        "weights",
        "requests",
    }

    fetched = run_app(there("b", f"cache.keys=[{ours}]", "cache.on_miss=fail"), env=no_compiler)
    assert (fetched.code, fetched.record["cache"]["outcome"]) == (0, "remote-hit"), fetched.stderr
    assert fetched.record["key"] == made.record["key"]
    assert fetched.record["warnings"] == []
    served = run_app(there("b", f"cache.keys=[{ours}]", "task=benchmark", "cache.remote=/gone"), env=no_compiler)
    assert (served.record["cache"]["outcome"], served.record["rung"]) == ("direct-hit", "compiled")
    assert not any("remote" in line for line in served.record["warnings"])

    credentials.setenv("AWS_ENDPOINT_URL", s3)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("e2e-artifacts")
    files.put(f"{remote}/", "e2e-artifacts/team/", recursive=True)
    over_http = run_app(
        there("f", f"cache.keys=[{ours}]", "cache.on_miss=fail", "cache.remote=s3://e2e-artifacts/team"),
        env=no_compiler,
    )
    assert (over_http.code, over_http.record["cache"]["outcome"]) == (0, "remote-hit"), over_http.stderr
    assert "nclosed" not in over_http.stderr  # what an event loop that is left behind says
    assert over_http.record["warnings"] == []

    # the text changed and the program did not: traced here, and the object comes from there
    module_file("shared_model", MODEL + "\n    # a comment\n")
    traced = run_app(there("c", f"cache.keys=[{ours}]"), env=no_compiler)
    assert (traced.code, traced.record["cache"]["outcome"]) == (0, "graph-hit"), traced.stderr
    module_file("shared_model", MODEL)

    refused = run_app(there("d", f"cache.keys=[{stranger}]", "cache.on_miss=fail"), env=no_compiler)
    assert (refused.code, refused.record["cache"]["outcome"]) == (9, "miss")
    assert any(ours[:12] in line and "not among cache.keys" in line for line in refused.record["warnings"])
    assert num_objects(tmp_path / "d") == 0

    gone = run_app(there("e", "cache.remote=/gone", "cache.on_miss=fail"), env=no_compiler)
    assert gone.code == 9
    assert gone.stderr.count("can't be reached") == 1


def test_remote_that_can_not_be_signed_for_is_a_config_error(run_app, tmp_path):
    args = ["model=linear", f"cache.dir={tmp_path}/store", f"cache.remote={tmp_path}", "cache.trust=signed"]
    run = run_app([*args, "cache.remote_mode=read-write"])
    assert run.code == 2
    assert "cache.signing_key" in run.stderr
