"""`penchant report`: the HTML page of a run, made again."""

from __future__ import annotations

import json
from pathlib import Path

from penchant.errors import InputError
from penchant.report import write_report
from penchant.report_align import write_align_report


def report(run: str, *, out: str | None = None) -> None:
    """Make the HTML report of a run from its metrics.json.

    Args:
        run: folder of the run, or a metrics.json.
        out: page to write; report.html beside the metrics by default.
    """
    path = Path(run) / "metrics.json" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise InputError(f"there is no metrics.json in {run!r}; give the folder of a train, evaluate or align run.")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); run the evaluation again.") from error
    if not isinstance(metrics, dict) or not {"accuracy", "policy"} & set(metrics):
        raise InputError(f"{path} holds no metrics of a run; give the folder of a train, evaluate or align run.")
    page = Path(out) if out else path.with_name("report.html")
    try:
        print((write_align_report if "policy" in metrics else write_report)(metrics, page))
    except OSError as error:
        raise InputError(f"cannot write {page}: {error.strerror}; choose another --out.") from error
