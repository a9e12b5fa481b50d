"""The overview: each method beside what is simpler."""

from __future__ import annotations

import re
from typing import Any

from table_cells import markdown, percent, points, result, spread


def which(_: dict[str, Any]) -> str:
    """Each method beside what is simpler: one line a method, from the records of their own benchmarks."""
    rewards, trl, people = (result(name) for name in ("reward_accuracy", "vs_trl", "coded_people"))
    hh = rewards["figures"]["hh"]["all"]["auto_minus_linear_mean"]
    others = [
        cell["auto_minus_linear_mean"]
        for name, sizes in rewards["figures"].items()
        if name != "hh"
        for cell in sizes.values()
    ]
    sets = {name: sizes for name, sizes in result("lens")["details"].items() if name not in ("methods", "theory")}
    synthetic = [cell["lens_8x"]["minus_ridge"] for sizes in sets.values() for cell in sizes.values()]
    sparse_cells = [
        cell["rows"]["sparse"]["minus_ridge"]
        for sizes in result("sparse")["details"]["sets"].values()
        for cell in sizes.values()
    ]
    cells = result("lpc")["details"]["cells"]
    coded = [cell["delta"] for name, cell in cells.items() if re.fullmatch(r"\w+/\w+/codes 64", name)]
    judged = cells["demo/dpo/codes 64/people"]["people"]
    persons = result("personal")["details"]["sentiment"]["methods"]
    tastes = result("personal_tastes")["details"]["convarg"]["personal_50"]["minus_pooled"]
    faster = trl["figures"]["lora_cpu_seconds"] / trl["figures"]["penchant_cpu_seconds"]
    against = {
        "value": trl["figures"]["delta_vs_lora"],
        "low": trl["figures"]["delta_vs_lora_ci_low"],
        "high": trl["figures"]["delta_vs_lora_ci_high"],
    }
    rows = [
        ["method", "against", "data", "difference, points"],
        ["`auto` head, all pairs", "ridge head", "hh, two standards mixed", points(hh)],
        ["`auto` head", "ridge head", "the other sets", spread(others)],
        [f"`auto` head, {faster:.0f} times less CPU time", "TRL RewardTrainer, LoRA", "harmless", points(against)],
        ["LENS, 8x, same prompt", "ridge head", "four sets", spread(synthetic)],
        ["SparseRM (`sparse` head)", "ridge head, layer 24", "five sets", spread(sparse_cells)],
        [
            "`coded` head, 8 pairs of the person",
            "one taste for all",
            "demo, annotators who disagree",
            points(people["figures"]["posterior_8"]["minus_pooled"]),
        ],
        ["policy, 64 codes from the prompt", "the same loss, no codes", "four sets, three losses", spread(coded)],
        ["policy, 64 codes, known who judged", "plain DPO", "demo", points(judged["known_minus_plain"])],
        ["policy, 64 codes, 8 new pairs", "plain DPO", "demo", points(judged["likelihood_minus_plain"])],
        ["a taste a person, 50 pairs", "ridge on other people's pairs", "convarg", points(tastes)],
    ]
    won = [["a person's answers win over the LLM's own", "win rate, %", "seconds a person"]]
    for key, name in {"latent": "Latent DPO, one vector", "lora": "DPO, LoRA", "full": "DPO, all weights"}.items():
        won.append([name, percent(persons[key]["win"]), f"{persons[key]['seconds']:.1f}"])
    return f"{markdown(rows)}\n\n{markdown(won)}"
