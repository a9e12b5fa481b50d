"""Very many people of one frozen LLM: what fitting, keeping and answering each of them costs.

  fit         seconds for 1, 100 and 10,000 people of 8 pairs side by side, z and taste, from given vectors of the pairs
  text        the same from texts: pairs read by the encoder, and with rewards, the LLM's latents of them
  store       1,000,000 people in one file, against a safetensors file a person (`personal_many_store.py`)
  generation  answers in a person's z, that person being looked up among all of them, against answers without z
  compact     what the float16 numbers of the file cost in the order of pairs

Costs, not quality: vectors are simulated, and CLaP on the embedded LLM is not trained, but has weights of usual sizes.
A part that is done is kept in --work, and not run again.

    python benchmarks/personal_many.py --quick
    python benchmarks/personal_many.py --work runs/personal_many      2.5 GB there, removed at the end
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import finish, kept, table
from datasets import Dataset
from numpy.typing import NDArray
from personal_many_store import LATENT, MODEL, NAMED, PAIRS, name_of

from penchant.backbone import DEFAULT, load_whole
from penchant.generation import Generator
from penchant.heads import TasteHead
from penchant.heads.tastes import Taste
from penchant.latents import LatentPairs, Recipe
from penchant.pairs import load_pairs
from penchant.personal.clap import Clap
from penchant.personal.encoder import Gaussian
from penchant.personal.fitting import LatentDPOSettings, fit_people
from penchant.personal.known import Known
from penchant.personal.reading import Judged
from penchant.personal.records import Person
from penchant.personal.system import PersonalLLM

Array = NDArray[Any]
WIDTH = 576
"""Of the embedded LLM's latents."""
TOKENS = 24
DEMO = Path(__file__).resolve().parent.parent / "penchant" / "data" / "demo.jsonl.gz"


def timed(act: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Wall and CPU seconds: medians, and the least and the most wall seconds."""
    wall, cpu = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        act()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    middle, spent = float(np.median(wall)), float(np.median(cpu))
    return {"seconds": middle, "cpu_seconds": spent, "least": min(wall), "most": max(wall), "repeats": repeats}


def simulated(people: int, pairs: int = PAIRS, seed: int = 0) -> tuple[Judged, torch.Tensor, torch.Tensor]:
    """Pairs of z, whose they are [n], and the tastes [people, LATENT], the same at each seed, that ordered them, with
    doubt."""
    random = torch.Generator().manual_seed(seed)
    taste = torch.randn(people, LATENT, generator=torch.Generator().manual_seed(99))
    owner = torch.arange(people).repeat_interleave(pairs)
    a, b = torch.randn(2, len(owner), LATENT, generator=random)
    likes = torch.sigmoid(((a - b) * taste[owner]).sum(1)) > torch.rand(len(owner), generator=random)
    zero = torch.zeros_like(a)
    better, worse = torch.where(likes[:, None], a, b), torch.where(likes[:, None], b, a)
    return Judged(Gaussian(better, zero), Gaussian(worse, zero)), owner, taste


def latent_pairs(people: int, pairs: int = PAIRS, seed: int = 0) -> LatentPairs:
    """Latents of falling variance, as an LLM's are, judged by people who share a half of their taste, which is the same
    at each seed."""
    rng, n = np.random.default_rng(seed), people * pairs
    scale = np.geomspace(3, 0.03, WIDTH).astype(np.float32)
    sides = rng.standard_normal((2, n, WIDTH), np.float32) * scale
    tastes = np.random.default_rng(99)
    taste = (tastes.standard_normal(WIDTH) + tastes.standard_normal((people, WIDTH))).astype(np.float32) / 10
    margin = np.einsum("upd,ud->up", (sides[0] - sides[1]).reshape(people, pairs, WIDTH), taste).ravel()
    first = (1 / (1 + np.exp(-margin)) > rng.random(n))[:, None]
    recipe = Recipe("simulated", "", ("20:mean",), WIDTH, "none", 2048, "float32")
    names = np.array([name_of(i) for i in range(people)]).repeat(pairs)
    better, worse = np.where(first, *sides), np.where(first, *sides[::-1])
    return LatentPairs(better, worse, np.zeros_like(better), recipe, np.arange(n), user_id=names)


def fit(sizes: list[int], repeats: int) -> dict[str, Any]:
    """Seconds by the number of people; what is read from text is given."""
    head, settings, found = TasteHead().fit(latent_pairs(100, 20, seed=1)), LatentDPOSettings(), {}
    for people in sizes:
        judged, owner, _ = simulated(people)
        pairs, start = latent_pairs(people), torch.zeros(people, LATENT)
        times = repeats if people < 10_000 else max(3, repeats // 3)
        z = timed(lambda j=judged, o=owner, s=start: fit_people(j, o, s, settings), times)
        taste = timed(lambda p=pairs: head.fit_people(p), times)
        both = z["cpu_seconds"] + taste["cpu_seconds"]  # on one thread; others' work is not in it, as in wall seconds
        found[str(people)] = {"z": z, "taste": taste, "users_per_second": people / both}
    return found


def compact(people: int) -> dict[str, Any]:
    """Shares of pairs that people as the file keeps them order as people in full precision do, and how often each is
    right: z on fresh pairs, and z and tastes after 8 more pairs that go on from what is kept."""
    settings, start = LatentDPOSettings(), torch.zeros(people, LATENT)
    judged, owner, taste = simulated(people)
    own = fit_people(judged, owner, start, settings)
    head = TasteHead().fit(latent_pairs(100, 20, seed=1))
    before = head.fit_people(latent_pairs(people))
    whole = [Known(own[i], None, before[name_of(i)]) for i in range(people)]
    rows = [Person(name_of(i), dict(known.vectors(NAMED)), PAIRS, 1, 0.0, MODEL) for i, known in enumerate(whole)]
    small = [Known.of(row, NAMED) for row in rows]
    random = torch.Generator().manual_seed(7)
    step = torch.randn(people, 50, LATENT, generator=random) - torch.randn(people, 50, LATENT, generator=random)
    truth = torch.einsum("und,ud->un", step, taste)

    def z_margins(weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum("und,ud->un", step, weights)

    more, seen = simulated(people, seed=3)[0], torch.full((people,), PAIRS)
    kept = torch.stack([one.weights for one in small if one.weights is not None])
    later = [fit_people(more, owner, at, settings, seen=seen) for at in (own, kept)]
    fresh, next_pairs = latent_pairs(people, 20, seed=5), latent_pairs(people, seed=4)

    def taste_margins(known: list[Known]) -> torch.Tensor:
        tastes: dict[str, Taste] = {name_of(i): one.taste for i, one in enumerate(known) if one.taste}
        after = head.fit_people(next_pairs, tastes)
        mean = np.stack([after[name_of(i)].mean for i in range(people)])
        sides = ((fresh.chosen - fresh.rejected) @ head.components_.T).reshape(people, 20, -1)
        return torch.from_numpy(np.einsum("upk,uk->up", sides, mean))

    def against(full: torch.Tensor, stored: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
        return {
            "same_order": float((full.sign() == stored.sign()).double().mean()),
            "right_full": float((full.sign() == right.sign()).double().mean()),
            "right_stored": float((stored.sign() == right.sign()).double().mean()),
        }

    by_taste = [taste_margins(known) for known in (whole, small)]
    return {
        "people": people,
        "z": against(z_margins(own), z_margins(kept), truth),
        "z_after_8_more": against(*map(z_margins, later), truth),
        "taste_after_8_more": against(*by_taste, torch.ones(people, 20)),
    }


def system_in(folder: Path) -> PersonalLLM:
    """Nobody trained it, but z does all that it does in one that was."""
    llm, backbone = load_whole(DEFAULT, "auto", None, 2048)
    torch.manual_seed(0)
    clap = Clap(llm, backbone, LATENT)
    torch.nn.init.normal_(clap.posterior.head.weight, std=0.02)
    torch.nn.init.normal_(clap.adapter.axes, std=0.02)  # type: ignore[union-attr]
    reach = {"slope": [0.0] * LATENT, "bend": 0.01, "metric": torch.eye(LATENT).tolist()}
    facts = {"digest": MODEL, "reach": reach}
    return PersonalLLM(clap, Generator(llm, backbone, clap.adapter), facts, folder)


def text(folder: Path, people: int) -> dict[str, Any]:
    """Seconds a person of `fit_users` on 8 pairs of text each, kept in the file, without and with rewards."""
    system = system_in(folder)
    pairs = load_pairs(DEMO).select(range(PAIRS * people))

    def named(prefix: str, count: int) -> Dataset:
        some = pairs.select(range(PAIRS * count))
        names = [f"{prefix} {i // PAIRS}" for i in range(len(some))]
        return (some.remove_columns("user_id") if "user_id" in some.column_names else some).add_column("user_id", names)

    found: dict[str, Any] = {"people": people}
    found["z"] = timed(lambda: system.fit_users(named("z", people)), 1)
    few = max(2, people // 10)
    system.fit_population(named("population", few), cache=folder / "cache")
    shutil.rmtree(folder / "cache")
    found["people_with_rewards"] = few
    found["with_rewards"] = timed(lambda: system.fit_users(named("both", few), cache=folder / "cache"), 1)
    system.users.close()
    for name, count in (("z", people), ("with_rewards", few)):
        found[name]["cpu_seconds_a_person"] = found[name]["cpu_seconds"] / count
    return found


def generation(folder: Path, people: int, repeats: int) -> dict[str, Any]:
    """Seconds of the same number of tokens, in z of a person looked up among all, and without z, in turns."""
    system = system_in(folder)
    chat, rng = system.clap.backbone.chat, np.random.default_rng(3)
    chat._ends = {-1}  # no answer ends early, so that all are of TOKENS tokens
    asked = list(dict.fromkeys(load_pairs(DEMO)["prompt"]))
    found: dict[str, Any] = {}
    for count in (1, 8):
        seconds: dict[str, list[float]] = {"person": [], "plain": []}
        for turn in range(repeats + 1):
            prompts = [asked[(turn * count + i) % len(asked)] for i in range(count)]
            for who in ("person", "plain") if turn % 2 else ("plain", "person"):
                name = name_of(int(rng.integers(people // 2)))
                start = time.perf_counter()
                if who == "person":
                    system.generate(prompts, name, max_new_tokens=TOKENS)
                else:
                    system.generator.sample(
                        prompts, answers=1, max_new_tokens=TOKENS, temperature=0, top_p=1.0, show_progress=False
                    )
                if turn:  # the first warms up
                    seconds[who].append(time.perf_counter() - start)
        ratio = np.array(seconds["person"]) / np.array(seconds["plain"])
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        found[f"prompts_{count}"] = {
            "ratio": {"p25": low, "p50": middle, "p75": high},
            "seconds": {who: float(np.median(took)) for who, took in seconds.items()},
            "repeats": repeats,
        }
    system.users.close()
    return found


def emptied(folder: Path) -> Path:
    """Without what a killed run left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def store(folder: Path, people: int, files: int) -> dict[str, Any]:
    script = Path(__file__).with_name("personal_many_store.py")
    command = [sys.executable, str(script), str(folder), str(people), str(files)]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def rows_of(details: dict[str, Any]) -> list[list[str]]:
    fitted, users, files = details["fit"], details["store"]["users"], details["store"]["files"]
    rows = [["figure", "measured"]]
    for people, cell in fitted.items():
        told = f"{cell['z']['cpu_seconds']:.4f}, {cell['taste']['cpu_seconds']:.4f}, {cell['users_per_second']:,.0f}"
        rows.append([f"{people} people: CPU seconds for z, for taste, people a second", told])
    for name in ("z", "with_rewards"):
        rows.append(
            [f"from text, {name}: CPU seconds a person", f"{details['text'][name]['cpu_seconds_a_person']:.3f}"]
        )
    for name in (
        "put_per_second",
        "bytes_of_a_file_of_three",
        "file_bytes_per_user",
        "peak_mib_at_a_tenth",
        "peak_mib_at_the_end",
        "peak_mib",
    ):
        rows.append([f"store, {name}", f"{users[name]:,.0f}"])
    for key, cell in users.items():
        if isinstance(cell, dict) and "p99" in cell:
            rows.append([f"store, {key}: ms, median and 99%", f"{cell['p50']:.3f}, {cell['p99']:.3f}"])
    rows.append(["files: people a second", f"{files['put_per_second']:,.0f}"])
    rows.append(["files: bytes on disk a person", f"{files['bytes_on_disk']:,.0f}"])
    rows.append(["files: lookup ms, median and 99%", f"{files['lookup']['p50']:.3f}, {files['lookup']['p99']:.3f}"])
    for name, cell in details["generation"].items():
        rows.append([f"generation, {name}: with / without", f"{cell['ratio']['p50']:.3f}"])
    for name in ("z", "z_after_8_more", "taste_after_8_more"):
        rows.append([f"compact, {name}: same order", f"{details['compact'][name]['same_order']:.5f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few people: does it run?")
    parser.add_argument("--people", type=int, help="in the file; 1,000,000, or 20,000 with --quick")
    parser.add_argument("--work", type=Path, help="where finished parts are kept; a temporary folder if left out")
    args = parser.parse_args()
    quick: bool = args.quick
    people = args.people or (20_000 if quick else 1_000_000)
    work = args.work or Path(tempfile.mkdtemp(prefix="personal_many"))
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "fit": lambda: fit([1, 100] if quick else [1, 100, 10_000], 3 if quick else 9),
        "compact": lambda: compact(100 if quick else 1000),
        "text": lambda: text(emptied(work / "text"), 10 if quick else 40),
        "store": lambda: store(emptied(work / "people"), people, 2000 if quick else 20_000),
        "generation": lambda: generation(work / "people", people, 2 if quick else 9),
    }
    try:
        work.mkdir(parents=True, exist_ok=True)
        details = {name: kept(work / f"{name}{people}.json", stage) for name, stage in stages.items()}
        shutil.rmtree(work / "people", ignore_errors=True)
    finally:
        if args.work is None:
            shutil.rmtree(work)
    print(table(rows_of(details)))
    users = details["store"]["users"]
    finish(
        "personal_many",
        {
            "users_per_second": round(list(details["fit"].values())[-1]["users_per_second"]),
            "bytes_per_user": round(users["file_bytes_per_user"]),
            "lookup_ms": users["lookup"]["p50"],
            "lookup_ms_p99": users["lookup"]["p99"],
            "forget_ms": users["forget_1"]["p50"],
            "forget_100_ms": users["forget_100"]["p50"],
            "generation_overhead": details["generation"]["prompts_8"]["ratio"]["p50"],
            "generation_overhead_1": details["generation"]["prompts_1"]["ratio"]["p50"],
            "same_order": min(details["compact"][name]["same_order"] for name in ("z", "taste_after_8_more")),
        },
        full=not quick,
        details=details,
    )


if __name__ == "__main__":
    main()
