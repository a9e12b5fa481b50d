"""`penchant report`: the HTML page of a run, made again."""

from __future__ import annotations

import json
from pathlib import Path

from penchant.errors import InputError
from penchant.report import write_report
from penchant.report_align import write_align_report
from penchant.report_clap import write_clap_report
from penchant.report_personal import write_personal_report

KINDS = "train, evaluate, align or personal"
WRITERS = {
    "policy": write_align_report,
    "people": write_personal_report,
    "z": write_clap_report,
    "accuracy": write_report,
}
"""By a part that only this kind of run has; all have those after it, or none."""


def report(run: str, *, out: str | None = None) -> None:
    """Make the HTML report of a run from its metrics.json.

    Args:
        run: folder of the run, or a metrics.json.
        out: page to write; report.html beside the metrics by default.
    """
    path = Path(run) / "metrics.json" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise InputError(f"there is no metrics.json in {run!r}; give the folder of a {KINDS} run.")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); run the evaluation again.") from error
    write = next((writer for part, writer in WRITERS.items() if isinstance(metrics, dict) and part in metrics), None)
    if write is None:
        raise InputError(f"{path} holds no metrics of a run; give the folder of a {KINDS} run.")
    page = Path(out) if out else path.with_name("report.html")
    try:
        print(write(metrics, page))
    except OSError as error:
        raise InputError(f"cannot write {page}: {error.strerror}; choose another --out.") from error
