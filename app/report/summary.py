from dataclasses import dataclass
import json
from pathlib import Path


@dataclass
class Row:
    status: str
    label: str


@dataclass
class S:
    rows: list


def gather(ds):
    rows = []
    for d in ds:
        st = json.loads((Path(d) / "sweep.json").read_text())
        for j in st["jobs"]:
            p = Path(d) / j["folder"] / "record.json"
            r = json.loads(p.read_text()) if p.exists() else {"status": "lost", "error": None}
            rows.append(Row(r["status"], f"{j['overrides']} {r['status']} {r['error']}"))
    return S(rows)


def write(s, f):
    (Path(f) / "summary.json").write_text("{}")


def render(s, c):
    for r in s.rows:
        c.print(r.label, markup=False)
