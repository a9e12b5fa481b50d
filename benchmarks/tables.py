"""Puts the figures of benchmarks/results/ into the README and the pages of docs/ that show them.

`python benchmarks/tables.py` writes them, `--check` compares.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from table_cells import RESULTS
from tables_codes import coded, coded_people, lpc, lpc_cost, lpc_people
from tables_personal import personal_many, personal_sentiment, personal_tastes
from tables_rewards import encode, lens, lens_cost, reward_accuracy, vs_trl
from tables_scale import scale_cost, scale_fit, scale_memory, scale_model, scale_people, scale_ray
from tables_serve import serve
from tables_sparse import sparse, sparse_checks, sparse_people, sparse_sae
from tables_which import which

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "which-method.md", ROOT / "docs" / "scaling.md")

TABLES = {
    "which": which,
    "reward_accuracy": reward_accuracy,
    "encode": encode,
    "vs_trl": vs_trl,
    "lens": lens,
    "lens_cost": lens_cost,
    "sparse": sparse,
    "sparse_checks": sparse_checks,
    "sparse_sae": sparse_sae,
    "sparse_people": sparse_people,
    "coded": coded,
    "coded_people": coded_people,
    "lpc": lpc,
    "lpc_people": lpc_people,
    "lpc_cost": lpc_cost,
    "personal_sentiment": personal_sentiment,
    "personal_many": personal_many,
    "personal_tastes": personal_tastes,
    "serve": serve,
    "scale_ray": scale_ray,
    "scale_memory": scale_memory,
    "scale_model": scale_model,
    "scale_cost": scale_cost,
    "scale_fit": scale_fit,
    "scale_people": scale_people,
}
SOURCE = {
    "which": "reward_accuracy",
    "lens_cost": "lens",
    **dict.fromkeys(("sparse_checks", "sparse_sae", "sparse_people"), "sparse"),
    **dict.fromkeys(("lpc_people", "lpc_cost"), "lpc"),
    "personal_sentiment": "personal",
    "scale_fit": "scale_memory",
    **dict.fromkeys(("scale_model", "scale_cost", "scale_people"), "scale"),
}
"""The result a table is made from, where it is not its namesake."""


def filled(text: str) -> str:
    """A page with each table made from its result, or with a sentence where there is none."""
    for name, make in TABLES.items():
        source = SOURCE.get(name, name)
        path = RESULTS / f"{source}.json"
        if path.is_file():
            content = make(json.loads(path.read_text(encoding="utf-8")))
        else:
            content = f"*No full run of `benchmarks/{source}.py` is recorded yet.*"
        block = f"<!-- table:{name} -->\n{content}\n<!-- end -->"
        text = re.sub(rf"<!-- table:{name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.S)
    return text


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if "--check" not in sys.argv[1:]:
            page.write_text(filled(text), encoding="utf-8")
        elif filled(text) != text:
            sys.exit(f"{page.relative_to(ROOT)} is not up to date: run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
