"""The server's table."""

from __future__ import annotations

from typing import Any

from table_cells import made, markdown

LOADS = {
    "distinct": "a prompt and an answer",
    "groups": "an answer of eight to a prompt, apart",
    "together": "eight answers to a prompt, together",
    "repeated": "what was asked before",
}


def serve(record: dict[str, Any]) -> str:
    ours, plain, memory = (record["details"][name] for name in ("ours", "plain", "memory"))
    rows = [["a request holds", "clients", "requests/s", "plain loop", "ratio", "p50; p99, ms", "plain loop"]]
    for load, told in LOADS.items():
        for clients in (1, 8, 32):
            own, other = (cells[f"{load} {clients}"] for cells in (ours, plain))
            rates = [each["requests_per_second"] for each in (own, other)]
            times = [f"{each['p50_ms']:,.0f}; {each['p99_ms']:,.0f}" for each in (own, other)]
            ratio = f"{rates[0] / rates[1]:.1f}"
            rows.append([told, str(clients), *(f"{rate:.1f}" for rate in rates), ratio, *times])
    figures = record["figures"]
    about = (
        f"Scores that are `RewardModel.score`'s to the last bit: {figures['equal']:.0%}. Resident memory: "
        f"{memory['settled']:,.0f} MB after 2,000 requests, {memory['end']:,.0f} after {memory['requests']:,}."
    )
    return f"{markdown(rows)}\n\n{about} {made(record)}"
