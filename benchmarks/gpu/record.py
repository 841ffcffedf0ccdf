"""What a run of the parts found: JSON and Markdown, written anew after every row, so that nothing is lost."""

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from energy_transformer.utils.files import atomic_path

Row = dict[str, Any]


@dataclass
class Run:
    """The options of a run, and what it has found so far.

    Attributes:
        device: where everything is computed.
        quick: small sizes and few rounds, to see that everything works.
        folder: where `results.json` and `results.md` go.
        minutes: how long a part may last; it leaves out the rows that it does not come to.
        lumen_checkout: the folder with LumenPallidium/energy_transformer, or None.
        wheels: the unpacked packages to compare with.
        facts: the machine, the date and the versions.
        parts: for each part its title, its state, its seconds and its tables of rows.
    """

    device: torch.device
    quick: bool
    folder: Path
    minutes: float = 8.0
    lumen_checkout: Path | None = None
    wheels: Path | None = None
    facts: Row = field(default_factory=dict)
    parts: dict[str, Row] = field(default_factory=dict)
    deadline: float = float("inf")
    part: str = ""

    @contextmanager
    def running(self, letter: str, title: str) -> Iterator[None]:
        """Everything of a part; its exception becomes a traceback among the results."""
        self.part, started = letter, time.monotonic()
        self.deadline = started + 60 * self.minutes
        found = self.parts[letter] = {"title": title, "state": "running", "seconds": 0.0, "tables": {}, "notes": []}
        self.write()
        try:
            yield
        except Exception:  # whatever a part fails by, the parts after it are still of use
            found["state"], found["traceback"] = "failed", traceback.format_exc()
        else:
            found["state"] = "failed" if self.has_failed_rows(letter) else "done"
        found["seconds"] = time.monotonic() - started
        self.write()
        print(f"part {letter}: {found['state']} after {found['seconds']:.0f} s", flush=True)

    def has_failed_rows(self, letter: str) -> bool:
        rows = (row for table in self.parts[letter]["tables"].values() for row in table)
        return any(row.get("result") == "failed" for row in rows)

    def add(self, table: str, **row: Any) -> None:
        """A row of a table of this part; `result="failed"` makes the part fail."""
        self.parts[self.part]["tables"].setdefault(table, []).append(row)
        self.write()
        print(f"{self.part} {table}: {', '.join(f'{key} {shown(value)}' for key, value in row.items())}", flush=True)

    def note(self, text: str) -> None:
        """A sentence of this part: what was left out, and why."""
        self.parts[self.part]["notes"].append(text)
        self.write()
        print(f"{self.part}: {text}", flush=True)

    def is_over(self) -> bool:
        return time.monotonic() > self.deadline

    def attempt(self, table: str, names: Row, measure: Callable[[], Row]) -> None:
        """A row of what `measure` returns, or of why it did not: the time, the memory, or an error of any kind."""
        if self.is_over():
            self.add(table, **names, result="out of time")
            return
        try:
            found = measure()
        except torch.OutOfMemoryError:
            found = {"result": "out of memory"}
        except Exception as error:  # the next rows are still of use
            traceback.print_exc()
            kind = type(error).__name__
            # Triton's, of a tile that needs more shared memory or registers than there are: no fault of the kernel
            result = "does not fit" if kind == "OutOfResources" else "failed"
            found = {"result": result, "error": f"{kind}: {str(error).strip()[:400]}"}
        self.add(table, **names, **found)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        everything = {"facts": self.facts, "parts": self.parts}
        for name, text in (("results.json", json.dumps(everything, indent=1)), ("results.md", self._page())):
            with atomic_path(self.folder / name) as temporary:
                temporary.write_text(text + "\n")

    def _page(self) -> str:
        lines = ["# What a device showed", "", *(f"- {key}: {shown(value)}" for key, value in self.facts.items())]
        for letter, part in self.parts.items():
            lines += ["", f"## {letter}: {part['title']}", "", f"{part['state']}, {part['seconds']:.0f} s"]
            lines += ["", *(f"- {note}" for note in part["notes"])] if part["notes"] else []
            for table, rows in part["tables"].items():
                lines += ["", f"### {table}", "", *_table(rows)]
            if "traceback" in part:
                lines += ["", "```", part["traceback"].rstrip(), "```"]
        return "\n".join(lines)


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("\n", " ").replace("|", "\\|")


def _table(rows: list[Row]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[shown(row[key]) if key in row else "" for key in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells)]
