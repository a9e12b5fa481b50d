"""Which checkpoint a run goes on from: the newest whole one, and only one that was made with the very same settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penchant.errors import InputError
from penchant.policy.batches import TokenPair
from penchant.policy.policy import Policy
from penchant.policy.settings import Settings

STATE = "trainer_state.json"
"""Of a checkpoint the last file to be written."""


def identity(
    policy: Policy, settings: Settings, pairs: list[TokenPair], person: Sequence[int] | None = None
) -> dict[str, Any]:
    """What a checkpoint must have been made with for a run to go on from it."""
    digest = hashlib.blake2b(b"".join(item.key for pair in pairs for item in pair), digest_size=16).hexdigest()
    told = {name: value for name, value in asdict(settings).items() if name not in ("save_steps", "log_steps")}
    judged = {} if person is None else {"people": [policy.facts["people"][i] for i in person]}
    return {"base": policy.facts["revision"], "dtype": policy.facts["dtype"], "pairs": digest, **told, **judged}


def last_checkpoint(folder: Path, made_with: dict[str, Any]) -> Path | None:
    """The newest whole checkpoint; InputError if the folder belongs to another run. A new folder is claimed."""
    claim = folder / "made_with.json"
    if claim.is_file():
        found = json.loads(claim.read_text(encoding="utf-8"))
        if other := [name for name in made_with if found.get(name) != made_with[name]]:
            raise InputError(
                f"{folder} belongs to a run with other {', '.join(other)}; give another --out, or delete that folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    claim.write_text(json.dumps(made_with, indent=1) + "\n", encoding="utf-8")
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}")]  # written last
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
