"""What a training run leaves to look at: a line of JSON a record, TensorBoard's events, and the curves as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distilbert.core.errors import CheckpointError

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
EVENTS_FOLDER = "events"
TRAINED, EVALUATED = "train", "dev"
TIMES = ("tokens_per_second",)  # what differs from run to run


class Log:
    """Records of a run, in a folder; those behind the step that a run goes on from are forgotten.

    Args:
        folder: where to.
        step: how many updates are done.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # Not TensorBoard's own writer, which imports TensorFlow where that is installed.
        from tensorboardX import SummaryWriter

        self.folder = folder
        kept = [record for record in read(folder) if record["step"] <= step]
        self.file = (folder / METRICS_FILE).open("w", encoding="utf-8")
        for record in kept:
            self._write(record)
        self.events = SummaryWriter(str(folder / EVENTS_FOLDER), purge_step=step + 1 if step else None)

    def add(self, kind: str, step: int, values: Mapping[str, float], **more: Any) -> None:
        """A record of ``kind``, after ``step`` updates."""
        self._write({"step": step, "kind": kind, **more, **values})
        self.file.flush()
        for name, value in values.items():
            self.events.add_scalar(f"{name}/{kind}", value, step)
        self.events.flush()

    def _write(self, record: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(record, allow_nan=False) + "\n")

    def close(self) -> None:
        """Draw the curves, and let go of the files."""
        self.file.close()
        self.events.close()
        draw_curves(read(self.folder), self.folder / CURVES_FILE)


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder, in order; none where there are none. A last line that a crash cut is left out.

    Raises:
        CheckpointError: there is something else.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").split("\n")
    try:
        records = [json.loads(line) for line in lines[:-1]]
        if all(isinstance(record["step"], int) for record in records):
            return records
    except (ValueError, TypeError, KeyError):
        pass
    raise CheckpointError(f"{path}: is not the log of a training run; move it away")


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """A picture of every value over the steps: one panel each, training and evaluation together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ignored = ("step", "kind", "epoch")
    names = list(dict.fromkeys(name for record in records for name in record if name not in ignored))
    if not names:
        return
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        for kind, style in ((TRAINED, {"linewidth": 1.2}), (EVALUATED, {"marker": "o", "markersize": 4})):
            points = [(r["step"], r[name]) for r in records if r["kind"] == kind and r.get(name) is not None]
            if points:
                panel.plot(
                    *zip(*points, strict=True), label=kind, color={TRAINED: "C0", EVALUATED: "C1"}[kind], **style
                )
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, frameon=False)
    for panel in panels[len(names) :]:
        panel.remove()
    figure.savefig(path, dpi=130)
