"""Tables of one LLM for many people."""

from __future__ import annotations

from typing import Any

from table_cells import made, markdown, percent, points


def personal_sentiment(record: dict[str, Any]) -> str:
    found = record["details"]["sentiment"]
    names = {
        "latent": "**Latent DPO, one vector a person**",
        "latent / full": "Latent DPO, an encoder a person",
        "latent / adapter positions": "as published: virtual positions, CLaP from nothing",
        "lora": "DPO, LoRA",
        "ptuning": "DPO, P-tuning",
        "full": "DPO, all weights",
    }
    names["latent / limit 1.25"] = "Latent DPO, perplexity may grow by a quarter"
    names["latent / read encoder"] = "Latent DPO, all texts read by the encoder"
    names |= {f"latent / latent {size}": f"Latent DPO, z of {size}" for size in (8, 64, 128)}
    names |= {f"latent / flips {share}": f"Latent DPO, {share:.0%} of feedback turned round" for share in (0.2, 0.4)}
    names["latent / domain demo"] = "Latent DPO, prompts of another domain"
    people = ("positive", "negative", "neutral")
    rows = [["method", "seeds", "win rate, %", *people, "perplexity, times the LLM's", "seconds a person"]]
    for key, name in names.items():
        if (row := found["methods"].get(key)) is None:
            continue
        each = [
            f"{100 * own['win']['value']:.0f} ({own['perplexity_ratio']:.2f})" if (own := row.get(who)) else ""
            for who in people
        ]
        win, ratio = (percent(row["win"]), f"{row['perplexity_ratio']:.2f}") if "win" in row else ("", "")
        rows.append([name, str(row["seeds"]), win, *each, ratio, f"{row['seconds']:.1f}"])
    about = ["Answers that win over the unadapted LLM's under the person's score; in brackets the perplexity."]
    for name, rivals in {"latent": found["compared"], **found["compared_farther"]}.items():
        if "lora" in rivals:
            about.append(f"{names[name].strip('*')}, minus LoRA: {points(rivals['lora'])}.")
    if sizes := {z.get("latent", 32): z for z in found["z"] if z["adapter"] == "shift"}:
        told = (f"{z['contrastive_accuracy']:.0%} (size {size})" for size, z in sorted(sizes.items()))
        about.append(f"Unseen answers told apart from the others to their prompt by their z: {', '.join(told)}.")
    if found["reward"]:
        about.append(f"Rank correlation of r(x, z) with the gold score of answers: {_correlations(found['reward'])}.")
    return f"{markdown(rows)}\n\n{' '.join([*about, made(record)])}"


def _correlations(reward: dict[str, list[float]]) -> str:
    return ", ".join(f"{who} {sum(values) / len(values):+.2f}" for who, values in reward.items())


def personal_many(record: dict[str, Any]) -> str:
    details = record["details"]
    store, files, compact = details["store"]["users"], details["store"]["files"], details["compact"]

    def ms(cell: dict[str, float]) -> str:
        return f"{cell['p50']:.3g}; {cell['p99']:.3g}"

    def on_disk(cell: dict[str, Any], size: str) -> list[str]:
        return [f"{cell[size]:,.0f}", f"{cell['put_per_second']:,.0f}", ms(cell["lookup"]), ms(cell["forget_100"])]

    fitted = [["people of 8 pairs, fitted together", "z, CPU seconds", "taste", "people a CPU second"]]
    for people, cell in details["fit"].items():
        seconds = [f"{cell[part]['cpu_seconds']:.2g}" for part in ("z", "taste")]
        fitted.append([f"{int(people):,}", *seconds, f"{cell['users_per_second']:,.0f}"])
    head = ["bytes a person", "people written a second", "lookup, ms", "forget 100, ms"]
    kept = [["medians; 99% of calls", *head]]
    kept.append([f"one file, {store['people']:,} people", *on_disk(store, "file_bytes_per_user")])
    kept.append([f"a safetensors file a person, {files['people']:,} people", *on_disk(files, "bytes_on_disk")])
    alone, eight = (details["generation"][f"prompts_{n}"]["ratio"] for n in (1, 8))
    texts = details["text"]
    seconds_a_person = "; ".join(f"{texts[name]['cpu_seconds_a_person']:.2f}" for name in ("z", "with_rewards"))
    ratios = "; ".join(f"{cell['p50']:.2f} ({cell['p25']:.2f}-{cell['p75']:.2f})" for cell in (alone, eight))
    same = "; ".join(f"{100 * compact[name]['same_order']:.2f}%" for name in ("z", "taste_after_8_more"))
    memory = f"{store['peak_mib_at_a_tenth']:.0f}; {store['peak_mib_at_the_end']:.0f}"
    calls = f"{store['forget_1']['p50']:.0f}; {store['lookup_on_opening']['p50']:.2g}"
    rows = [
        ["figure", "measured"],
        ["from text, CPU seconds a person: z; z and taste", seconds_a_person],
        ["answers in a person's z / without z, seconds (quartiles): 1 prompt; 8 prompts", ratios],
        ["that file, ms: forget one person; open it and look one up", calls],
        ["MiB that writing it took at most: the first tenth; all of it", memory],
        ["pairs in the order of full precision: z; taste", same],
    ]
    return "\n\n".join([*map(markdown, (fitted, kept, rows)), made(record)])


def personal_tastes(record: dict[str, Any]) -> str:
    shots = {"5": "5 own pairs", "15": "15", "50": "50", "all": "all"}
    names = {"longer": "the longer text", "pooled": "ridge, other people's pairs"}
    names |= {f"pooled_with_own_{n}": f"ridge, other people's and {text}" for n, text in shots.items()}
    names["personal_0"] = "**taste**, nothing known of the person"
    names |= {f"personal_{n}": f"**taste**, {text}" for n, text in shots.items()}
    names |= {f"flips_{share}": f"taste, 50, {share:.0%} of them turned round" for share in (0.2, 0.4)}
    names |= {f"adversarial_{n}": f"taste, {n}, 2 liars in the population" for n in (0, 50)}
    names["known_all"] = "taste, all, the person in the population"
    names |= {f"alone_{n}": f"ridge, {text} alone" for n, text in shots.items()}
    names["ceiling"] = "ridge, all own and the very arguments"
    found = record["details"]
    heads = [f"{data}, {what}" for data in found for what in ("accuracy, %", "minus ridge, minus nothing known")]
    rows = [["fitted on", *heads]]
    for key, name in names.items():
        row = [name]
        for one in found.values():
            if key in one:
                deltas = (one[key][f"minus_{base}"] for base in ("pooled", "population"))
                row += [percent(one[key]), "; ".join(points(delta) for delta in deltas)]
            else:
                row += ["", ""]
        rows.append(row)
    return f"{markdown(rows)}\n\nMean over people, {len(record['seeds'])} seeds. {made(record)}"
