"""Heads and synthesis on latents in files: the answers of memory, from few passes, and within little memory."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penchant import RewardModel, mapped
from penchant.cli.main import main
from penchant.errors import InputError
from penchant.heads import AutoHead, CommitteeHead, Head, LinearHead, MLPHead, PCAHead, auto, streamed
from penchant.heads.base import score_rows
from penchant.latents import LatentPairs, Recipe
from penchant.synthesis import Lens, Synthesizer
from penchant.synthesis.augmented import Augmented
from penchant.synthesis.noise import CrossPairs, DirectNoise, GaussianSynthesis, PCANoise
from penchant.synthesis.reduced import fit_reduced
from tests.test_heads import TWO_VIEWS, WIDTH, make_pairs, swapped
from tests.test_spooled import memory_mapped, side, spooled
from tests.tiny_llm import save_tiny_llm, tiny_pairs


@pytest.fixture(autouse=True)
def odd_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks of uneven size."""
    monkeypatch.setattr(mapped, "BLOCK_BYTES", 37 * WIDTH * 4)


def close(a: Any, b: Any, rtol: float) -> None:
    np.testing.assert_allclose(b, a, rtol=0, atol=rtol * np.abs(a).max())


@pytest.mark.parametrize("n", [15, 300])  # fewer and more pairs than columns
@pytest.mark.parametrize("head", [LinearHead(), LinearHead(1e-3), LinearHead(margin=True, label_smoothing=0.1)])
def test_the_linear_head_finds_the_optimum_of_memory(n: int, head: LinearHead, tmp_path: Path) -> None:
    pairs = replace(make_pairs(n, TWO_VIEWS), margin=np.random.default_rng(3).exponential(size=n))
    files = spooled(pairs, tmp_path)
    inside, outside = (LinearHead(**head.get_params()).fit(p) for p in (pairs, files))
    close(inside.weight_, outside.weight_, 1e-6)
    assert outside.strength_ == inside.strength_
    if head.strength is None:
        assert inside.cv_margins_ is not None
        assert outside.cv_margins_ is not None
        close(inside.cv_margins_, outside.cv_margins_, 0.01)
        assert outside.cv_accuracy_ == pytest.approx(inside.cv_accuracy_, abs=0.01)
    mirror = LinearHead(**head.get_params()).fit(swapped(files))
    if not head.margin:
        assert np.array_equal(mirror.weight_, -outside.weight_)
    close(inside.score(pairs.chosen), score_rows(outside, files.chosen), 1e-6)


def test_a_fit_takes_few_passes(tmp_path: Path, monkeypatch: Any) -> None:
    """Bytes read are what large pairs cost; a Newton step with conjugate gradients alone takes several passes."""
    files, passes, read = memory_mapped(make_pairs(600), tmp_path), [], streamed.read_blocks
    monkeypatch.setattr(streamed, "read_blocks", lambda *sides: passes.append(1) or read(*sides))
    LinearHead().fit(files)
    assert len(passes) <= 20
    passes.clear()
    LinearHead(10.0).fit(files)
    assert len(passes) <= 8


def test_a_rough_preconditioner_changes_the_passes_and_not_the_answer(tmp_path: Path, monkeypatch: Any) -> None:
    """Where columns or pairs are many, it comes from parts of them."""
    pairs = make_pairs(400, TWO_VIEWS)
    files, inside = memory_mapped(pairs, tmp_path), LinearHead().fit(pairs)
    monkeypatch.setattr(streamed, "GRAM_COLUMNS", 20)
    monkeypatch.setattr(streamed, "GRAM_ROWS", 2)
    outside = LinearHead().fit(files)
    close(inside.weight_, outside.weight_, 1e-6)
    assert outside.strength_ == inside.strength_


def test_a_bad_row_is_named_wherever_its_block_is(tmp_path: Path) -> None:
    for name in ("chosen", "rejected"):
        pairs = make_pairs(200)
        getattr(pairs, name)[123, 3] = np.nan
        for head in (LinearHead(), MLPHead()):
            with pytest.raises(InputError, match=f"the {name} latent of pair 123 holds NaN or inf"):
                head.fit(spooled(pairs, tmp_path))
    pairs = make_pairs(200)
    same = spooled(replace(pairs, rejected=pairs.chosen), tmp_path)
    with pytest.raises(InputError, match="equal latents in all 200 pairs"):
        LinearHead().fit(same)


def test_one_prompt_warns_as_in_memory(tmp_path: Path) -> None:
    pairs = replace(make_pairs(60), group=np.zeros(60, int))
    with pytest.warns(UserWarning, match="all pairs share one prompt"):
        outside = LinearHead().fit(spooled(pairs, tmp_path))
    with pytest.warns(UserWarning, match="all pairs share one prompt"):
        inside = LinearHead().fit(pairs)
    close(inside.weight_, outside.weight_, 1e-6)
    assert outside.cv_margins_ is None


def test_the_mlp_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    pairs = make_pairs(200, TWO_VIEWS)
    inside, outside = (MLPHead(hidden=8, batch_size=16, epochs=6).fit(p) for p in (pairs, spooled(pairs, tmp_path)))
    for name in inside.tensors:
        assert np.array_equal(getattr(inside, name), getattr(outside, name)), name
    assert (inside.epochs_, inside.validation_accuracy_) == (outside.epochs_, outside.validation_accuracy_)
    again = MLPHead(hidden=8, batch_size=16).fit_for(spooled(pairs, tmp_path), 3)
    assert np.array_equal(again.hidden_weight_, MLPHead(hidden=8, batch_size=16).fit_for(pairs, 3).hidden_weight_)


def test_auto_chooses_on_a_sample_and_fits_on_all(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(auto, "SAMPLE_PAIRS", 80)
    pairs = make_pairs(300, TWO_VIEWS, informative="10:mean")
    head = AutoHead().fit(spooled(pairs, tmp_path))
    sample = AutoHead().fit(pairs.sample(80))
    assert (head.chosen_on_, head.views_, head.head_.name) == (80, sample.views_, sample.head_.name)
    whole = LinearHead().fit(pairs.select(head.views_))
    assert isinstance(head.head_, LinearHead)
    close(whole.weight_, head.head_.weight_, 1e-6)
    assert head.cv_margins_ is not None
    assert len(head.cv_margins_) == 300
    assert head.cv_accuracy_ == pytest.approx(whole.cv_accuracy_, abs=0.01)
    few = make_pairs(60, TWO_VIEWS)
    assert AutoHead().fit(spooled(few, tmp_path)).tried_ == AutoHead().fit(few).tried_


def test_a_sample_is_of_whole_prompts_in_their_order(tmp_path: Path) -> None:
    pairs = make_pairs(200)
    some = spooled(pairs, tmp_path).sample(50)
    assert len(some) == 50
    assert not some.mapped
    assert (np.unique(some.group, return_counts=True)[1] == 2).all()
    assert (np.diff(some.group) >= 0).all()
    assert np.ptp(some.group) > 60
    at = np.isin(pairs.group, some.group)
    assert np.array_equal(pairs.chosen[at], some.chosen)


def test_a_committee_reads_files_and_other_heads_say_what_fits(tmp_path: Path) -> None:
    pairs = make_pairs(120)
    files = spooled(pairs, tmp_path)
    inside, outside = (CommitteeHead(LinearHead(), 3).fit(p) for p in (pairs, files))
    close(inside.score(pairs.chosen), outside.score(pairs.chosen), 1e-5)
    assert inside.cv_margins_ is not None
    assert outside.cv_margins_ is not None
    close(inside.cv_margins_, outside.cv_margins_, 1e-5)
    heads: list[Head] = [PCAHead(components=3), CommitteeHead(PCAHead(components=3), 2)]
    for head in heads:
        assert not head.streams
        with pytest.raises(InputError, match=r"\d+ pairs of latents take .* which 0 pairs fit: use the linear, mlp or"):
            head.fit(files)
    fits = memory_mapped(pairs, tmp_path)
    assert np.array_equal(PCAHead(components=3).fit(fits).taste_, PCAHead(components=3).fit(pairs).taste_)


SYNTHESIZERS = [
    Lens(steps=20),
    Lens(steps=20, pairing="all"),
    DirectNoise(),
    PCANoise(),
    GaussianSynthesis(),
    CrossPairs(),
]


@pytest.mark.parametrize("synthesizer", SYNTHESIZERS)
@pytest.mark.filterwarnings("ignore:the VAE has collapsed")
def test_synthesis_from_files_is_that_from_memory(synthesizer: Synthesizer, tmp_path: Path) -> None:
    pairs = make_pairs(90, TWO_VIEWS)
    pairs = replace(pairs, recipe=replace(pairs.recipe, views=("10:prompt", "10:mean")))
    files, others = spooled(pairs, tmp_path), pairs.chosen[:30] + 1
    inside = synthesizer.fit(pairs, others).sample(pairs, 3)
    outside = synthesizer.fit(files, others).sample(files, 3)
    assert outside.mapped
    exact = not isinstance(synthesizer, PCANoise)  # whose axes see in which order the latents lie in memory
    close(inside.chosen, outside.loaded().chosen, 0 if exact else 1e-5)
    close(inside.rejected, outside.loaded().rejected, 0 if exact else 1e-5)
    assert np.array_equal(outside.group, inside.group)


def test_a_reduced_fit_and_one_with_synthetic_pairs_agree_with_memory(tmp_path: Path) -> None:
    pairs = make_pairs(300, TWO_VIEWS)
    files = spooled(pairs, tmp_path)
    inside, outside = (fit_reduced(LinearHead(), p, axes=12) for p in (pairs, files))
    close(inside.weight_, outside.weight_, 1e-4)
    assert inside.strength_ == outside.strength_
    both = [Augmented(LinearHead(), PCANoise(4), 2).fit(p) for p in (pairs, files)]
    close(both[0].score(pairs.chosen), both[1].score(pairs.chosen), 1e-5)


# --- Memory


@contextmanager
def cap(megabytes: int) -> Iterator[None]:
    """No more private memory than so much above what this process has now: MemoryError."""
    gc.collect()  # else what earlier tests left would be freed within, and leave more room
    with open("/proc/self/status", encoding="ascii") as lines:
        now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (now + megabytes * 1_000_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LatentPairs:
    """123 MB of pairs in files."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here to read this process's memory from")
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for number in range(2):
        file = np.memmap(folder / str(number), np.float32, "w+", shape=LARGE)
        for start in range(0, LARGE[0], 1000):
            file[start : start + 1000] = rng.standard_normal((1000, LARGE[1]), dtype=np.float32)
            file[start : start + 1000, 0] += 1 - number
        file.flush()
    return pairs_in(folder)


LARGE = 60_000, 256


def pairs_in(folder: Path) -> LatentPairs:
    sides = [np.memmap(folder / str(number), np.float32, "r", shape=LARGE) for number in range(2)]
    recipe = Recipe("model", "0", ("1:mean",), LARGE[1], "none", 1, "float32")
    meta = {"folder": str(folder)}
    nothing = np.broadcast_to(np.float32(0), LARGE)
    return LatentPairs(sides[0], sides[1], nothing, recipe, np.arange(LARGE[0]) // 2, meta=meta)


@pytest.mark.parametrize(
    "head",
    [
        LinearHead(1.0),
        MLPHead(hidden=8, epochs=1, batch_size=512),
        Augmented(LinearHead(1.0), Lens(steps=5, hidden=8, latent=2), 2),
    ],
    ids=["linear", "mlp", "lens"],
)
@pytest.mark.filterwarnings("ignore:the VAE has collapsed")
def test_a_fit_takes_less_memory_than_the_latents(head: Any, large: LatentPairs, monkeypatch: Any) -> None:
    monkeypatch.setattr(mapped, "BLOCK_BYTES", 1 << 20)
    head.fit(large.take(slice(0, 2000)))  # what libraries allocate once is not counted
    with cap(56):
        head.fit(large)
        taken = score_rows(head, large.chosen) - score_rows(head, large.rejected)
    assert np.mean(taken > 0) > 0.6


def test_the_cap_is_one_that_reading_everything_breaks(large: LatentPairs) -> None:
    """In a process of its own: what earlier tests have freed would be room within the cap."""
    code = (
        "import sys; from pathlib import Path; from tests.test_streamed import cap, pairs_in\n"
        "pairs = pairs_in(Path(sys.argv[1]))\nwith cap(56): pairs.loaded()"
    )
    done = subprocess.run([sys.executable, "-c", code, large.meta["folder"]], capture_output=True, text=True)
    assert "MemoryError" in done.stderr.splitlines()[-1]


# --- Whole runs


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    save_tiny_llm(folder / "llm")
    rows = tiny_pairs(50, noise=0.2)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def train(work: Path, out: str, *more: str) -> int:
    return main(
        [
            "train", str(work / "pairs.jsonl"), "--model", str(work / "llm"), "--dtype", "float32",
            "--cache", str(work / "cache"), "--out", str(work / out), *more,
        ]
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--head", "linear"], ["--synthesis", "noise", "--factor", "2"]])
def test_training_within_tiny_memory_equals_training_in_memory(arguments: list[str], work: Path, capsys: Any) -> None:
    few = ["--views", "[2:mean,3:last]"]
    assert train(work, "memory", *arguments, *few) == train(work, "files", *arguments, *few, "--memory_gb", "1e-6") == 0
    told = capsys.readouterr().out
    assert told.count("training pairs, 2.05e-05 GB, were read from files.") == 1
    inside, outside = (json.loads((work / out / "metrics.json").read_text()) for out in ("memory", "files"))
    assert "memory" not in inside
    assert "pairs, 2.05e-05 GB, were read from files." in (work / "files" / "report.html").read_text()
    assert outside["memory"]["pairs"] == outside["data"]["train"]["pairs"]
    assert inside["accuracy"] == outside["accuracy"]
    assert inside["learning_curve"] == outside["learning_curve"]
    models = [RewardModel.from_pretrained(work / out / "model") for out in ("memory", "files")]
    prompts, responses = ["say"] * 3, ["a warm song", "no", "the river is a tree"]
    close(*(model.score(prompts, responses) for model in models), 1e-5)
    assert models[0].temperature == pytest.approx(models[1].temperature, rel=1e-3)
    assert not any(path.is_file() for path in (work / "cache").iterdir())  # stores alone, no file of latents


def test_a_head_that_needs_memory_is_refused_before_the_llm_runs(work: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("penchant.runs.encode_pairs", lambda *_, **__: pytest.fail("the LLM ran"))
    assert train(work, "refused", "--head", "pca", "--memory_gb", "1e-6") != 0
    assert "which 0 pairs fit: use the linear, mlp or auto head" in capsys.readouterr().err
    rows = tiny_pairs(50)
    with pytest.raises(InputError, match="use the linear, mlp or auto head"):
        RewardModel.train(rows, model=str(work / "llm"), head=PCAHead(), cache=work / "cache", memory_gb=1e-6)


def test_the_pairs_of_a_run_are_kept_in_no_variable(tmp_path: Path) -> None:
    """A head keeps nothing of the files it was fitted on."""
    files = spooled(make_pairs(60), tmp_path)
    number = side(files.chosen).file
    assert number is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heads = [LinearHead().fit(files), MLPHead(hidden=4, epochs=2).fit(files)]
    assert all(not isinstance(value, mapped.Mapped) for head in heads for value in vars(head).values())
