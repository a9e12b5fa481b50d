"""Latents do not depend on how they were computed: packing, order, neighbours, threads, kills, damage or company."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from penchant import encode as encode_module
from penchant.backbone import Backbone
from penchant.chat import Tokens
from penchant.encode import Cost, LatentStore, MemoryStore, encode, encode_pairs, encode_texts, tokenize_pairs
from penchant.errors import InputError
from penchant.packing import stack_keys
from penchant.pairs import load_pairs
from penchant.store import Store
from penchant.store_views import open_store
from tests import tiny
from tests.store_batches import same, shards
from tests.tiny import BUDGET, VIEWS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One worker, as tiny models lose more by waiting for a second one than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(one_thread: None) -> None:
    """Two workers."""
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def llama() -> Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def bloom() -> Backbone:
    return tiny.backbone("bloom")


@pytest.fixture(params=["packed", "padded"])
def backbone(request: pytest.FixtureRequest, llama: Backbone, bloom: Backbone) -> Backbone:
    return llama if request.param == "packed" else bloom


class Forwards:
    """Counts what goes through a model, while it is watched."""

    def __init__(self, backbone: Backbone) -> None:
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self.hook = backbone.model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, _module: Any, _inputs: Any, named: dict[str, Any]) -> None:
        self.sizes.append(named["input_ids"].numel())
        self.threads.add(threading.get_ident())

    def __enter__(self) -> Forwards:
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def tokens_of(backbone: Backbone, data: datasets.Dataset) -> list[Tokens]:
    return tokenize_pairs(backbone, data["prompt"][:], data["chosen"][:], data["rejected"][:])


def all_keys(tokens: list[Tokens]) -> Any:
    return stack_keys([key for item in tokens for key in (item.key, item.prompt_key)])


def latents(backbone: Backbone, tokens: list[Tokens], store: LatentStore | None = None, budget: int = BUDGET) -> Any:
    """Of every sequence and of its prompt [2n, dim], read back from the store."""
    store = store or MemoryStore()
    encode(backbone, backbone.recipe(VIEWS), tokens, store, token_budget=budget)
    return store.read(all_keys(tokens))


def relative(a: Any, b: Any) -> float:
    """The largest relative error of any latent's view."""
    a, b = (np.asarray(x, np.float64).reshape(-1, 32) for x in (a, b))
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_latents_are_those_of_each_sequence_alone(family: str) -> None:
    """For all layers and poolings, sequences and prompts, any budget, order and neighbours."""
    backbone, plain = tiny.backbone(family), tiny.model(family)
    tokens = tokens_of(backbone, tiny.pairs(6))
    parts = [part for t in tokens for part in ((t.prompt, t.response), (t.prompt[:0], t.prompt))]
    expected = torch.stack([tiny.plain_latent(plain, before, part) for before, part in parts]).numpy()
    order = random.Random(0).sample(range(len(tokens)), len(tokens))
    shuffled = np.ravel([[2 * i, 2 * i + 1] for i in order])
    for budget in (1, 100, 100_000):
        assert relative(latents(backbone, tokens, budget=budget), expected) < 1e-4
        assert relative(latents(backbone, [tokens[i] for i in order], budget=budget), expected[shuffled]) < 1e-4
    assert relative(latents(backbone, tokens[3:4]), expected[6:8]) < 1e-4


def test_pairs_and_texts_and_their_order(backbone: Backbone) -> None:
    data = tiny.pairs(12)
    made = encode_pairs(backbone, data, VIEWS, show_progress=False)
    for side in ("chosen", "rejected"):
        texts = encode_texts(backbone, data["prompt"][:], data[side][:], VIEWS)
        assert relative(getattr(made, side), texts) < 1e-5
    prompts = [maker.prompt for maker in tokens_of(backbone, data)[:12]]
    alone = torch.stack(
        [tiny.plain_latent(tiny.model("llama" if backbone.packed else "bloom"), p[:0], p) for p in prompts]
    )
    assert relative(made.prompt, alone.numpy()) < 1e-4
    assert encode_texts(backbone, [], [], VIEWS).shape == (0, made.recipe.dim)


def test_views_of_one_layer_are_the_same_in_any_company(llama: Backbone) -> None:
    data = tiny.pairs(6)
    wide = encode_pairs(llama, data, VIEWS, show_progress=False)
    for view in VIEWS:
        narrow = encode_pairs(llama, data, (view,), show_progress=False)
        assert same(narrow.chosen, wide.select((view,)).chosen)


def test_shared_prompts_and_equal_texts_are_run_once(llama: Backbone) -> None:
    prompts = ["hello there " * 8, "how are you"]
    answers = ["no", "yes", "say hello", "no"]
    tokens = llama.chat.encode([p for p in prompts for _ in answers], answers * 2)
    with Forwards(llama) as forwards:
        cost = Cost()
        encode(llama, llama.recipe(VIEWS), tokens * 3, MemoryStore(), token_budget=10_000, cost=cost)
    unique = {t.prompt_key: len(t.prompt) for t in tokens} | {t.key: len(t.response) for t in tokens}
    assert sum(forwards.sizes) == sum(unique.values()) == cost.unique_tokens
    assert cost.tokens == 3 * sum(map(len, tokens))
    assert (cost.sequences, cost.encoded_sequences, cost.cached_sequences) == (24, 6, 18)


def test_budget_bounds_every_forward(backbone: Backbone) -> None:
    """Also where one prompt has many answers, which a padded batch repeats it for."""
    data = tiny.pairs(40)
    tokens = tokens_of(backbone, data) + backbone.chat.encode(["hello " * 20] * 30, [f"say {i}" for i in range(30)])
    longest = max(map(len, tokens))
    for budget in (1, 100, 500):
        cost = Cost()
        with Forwards(backbone) as forwards:
            encode(backbone, backbone.recipe(VIEWS), tokens, MemoryStore(), token_budget=budget, cost=cost)
        assert max(forwards.sizes) <= max(budget, longest)
        assert cost.unique_tokens == sum(forwards.sizes)
    assert sum(forwards.sizes) > 300 * len(forwards.sizes), "most batches should be full"


def test_only_new_rows_are_run(tmp_path: Path, llama: Backbone) -> None:
    data = tiny.pairs(30)
    tokens = tokens_of(llama, data)
    old, new = tokens[:20] + tokens[30:50], tokens[20:30] + tokens[50:]
    store = Store(tmp_path, llama.recipe(VIEWS))
    before = latents(llama, old, store, 10_000)
    with Forwards(llama) as forwards:
        latents(llama, old, Store(tmp_path, llama.recipe(VIEWS)), 10_000)
    assert forwards.sizes == []
    with Forwards(llama) as forwards:
        grown = latents(llama, tokens, store, 10_000)
    added = {t.key: t for t in new if t.key not in {o.key for o in old}}
    prompts = {t.prompt_key: len(t.prompt) for t in added.values()}
    assert sum(forwards.sizes) == sum(prompts.values()) + sum(len(t.response) for t in added.values())
    assert same(store.read(all_keys(old)), before)
    assert relative(grown, latents(llama, tokens)) < 1e-5


@pytest.mark.usefixtures("two_threads")
def test_two_workers_give_the_bits_of_one(backbone: Backbone) -> None:
    tokens = tokens_of(backbone, tiny.pairs(60))
    torch.set_num_threads(1)
    expected = latents(backbone, tokens)
    torch.set_num_threads(2)
    for _ in range(3):
        with Forwards(backbone) as forwards:
            assert same(latents(backbone, tokens), expected)
        assert len(forwards.threads) == 2
    assert torch.get_num_threads() == 2


class Stop:
    """A progress bar that fails at the n-th batch."""

    def __init__(self, batches: int, error: type[BaseException]) -> None:
        self.left, self.error = batches, error

    def update(self, _tokens: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, backbone: Backbone, error: type[BaseException]
) -> None:
    tokens, recipe = tokens_of(backbone, tiny.pairs(60)), backbone.recipe(VIEWS)
    with Forwards(backbone) as whole:
        expected = latents(backbone, tokens, Store(tmp_path / "whole", recipe))
    store = Store(tmp_path / "part", recipe)
    with pytest.raises(error):
        encode(backbone, recipe, tokens, store, token_budget=BUDGET, progress=Stop(4, error))
    assert len(shards(store)) == 4
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
    with Forwards(backbone) as rest:
        assert same(latents(backbone, tokens, store), expected)
    assert len(rest.sizes) == len(whole.sizes) - 4


@pytest.mark.usefixtures("two_threads")
def test_flipped_byte_costs_its_batch_only(tmp_path: Path, backbone: Backbone) -> None:
    tokens, recipe = tokens_of(backbone, tiny.pairs(40)), backbone.recipe(VIEWS)
    store = Store(tmp_path, recipe)
    with Forwards(backbone) as whole:
        expected = latents(backbone, tokens, store)
    victim = random.Random(0).choice(shards(store))
    bits = bytearray(victim.read_bytes())
    bits[len(bits) // 2] ^= 4
    victim.write_bytes(bits)
    with pytest.warns(UserWarning, match="damaged"):
        again = Store(tmp_path, recipe)
    with Forwards(backbone) as forwards:
        assert same(latents(backbone, tokens, again), expected)
    assert len(forwards.sizes) == 1
    assert forwards.sizes[0] in whole.sizes


def fork() -> Any:
    """Processes that start in an instant: they fork from a server that has imported torch and run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny", "transformers.models.llama.modeling_llama"])
    return context


@pytest.mark.usefixtures("two_threads")
def test_killed_runs_end_as_if_never_interrupted(tmp_path: Path, llama: Backbone) -> None:
    """kill -9 at ten random moments of one run that goes on each time, and of what is left the parent does."""
    seed = random.randrange(10**6)
    print("seed", seed)
    rng, context, recipe = random.Random(seed), fork(), llama.recipe(VIEWS)
    n = 150
    tokens = tokens_of(llama, tiny.pairs(n, 1))
    start = time.perf_counter()
    expected = latents(llama, tokens, Store(tmp_path / "whole", recipe))
    whole = time.perf_counter() - start
    moments = 0
    for _ in range(10):
        started = context.Event()
        process = context.Process(target=tiny.encode_to, args=(tmp_path / "killed", n, 1, started))
        process.start()
        assert started.wait(120)
        time.sleep(rng.uniform(0, whole / 6))
        process.kill()
        process.join()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store = Store(tmp_path / "killed", recipe)
        done = store.has(all_keys(tokens))
        moments += not done.all()
        assert same(store.read(all_keys(tokens)[done]), expected[done])
    assert moments >= 2, "the run ended too soon for the kills to hit it"
    assert same(latents(llama, tokens, store), expected)


@pytest.mark.usefixtures("two_threads")
def test_two_processes_at_once_end_equal(tmp_path: Path, llama: Backbone) -> None:
    context, recipe = fork(), llama.recipe(VIEWS)
    processes = [context.Process(target=tiny.encode_to, args=(tmp_path / "shared", 90, 2)) for _ in range(2)]
    for process in processes:
        process.start()
    tokens = tokens_of(llama, tiny.pairs(90, 2))
    expected = latents(llama, tokens, Store(tmp_path / "alone", recipe))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = Store(tmp_path / "shared", recipe)
    assert store.has(all_keys(tokens)).all()
    assert same(store.read(all_keys(tokens)), expected)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_pairs_that_become_equal_are_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By their own row, also behind the first chunk; a pair that differs in its kept part is not."""
    monkeypatch.setattr(encode_module, "CHUNK", 2)
    backbone = tiny.backbone(name, max_length=12)
    rows = [{"prompt": f"how {i}", "chosen": "yes", "rejected": "no"} for i in range(6)]
    rows[2] |= {"chosen": "yes" + " hello" * 40, "rejected": "yes" + " hello" * 39 + " there"}
    assert encode_pairs(backbone, datasets.Dataset.from_list(rows), VIEWS, show_progress=False).meta["truncated"] >= 2
    rows[5] |= {"chosen": "yes" + " hello" * 40, "rejected": "no" + " hello" * 40}
    with pytest.raises(InputError, match="row 5: chosen and rejected become the same 12 tokens"):
        encode_pairs(backbone, datasets.Dataset.from_list(rows), VIEWS, show_progress=False)


def test_refused_rows_are_named_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "CHUNK", 2)
    template = (
        "{% for m in messages %}{% if 'bad' in m['content'] %}{{ raise_exception('bad word') }}{% endif %}{% endfor %}"
    )
    backbone = tiny.backbone(tok=tiny.tokenizer(template + tiny.CHATML))
    for side in ("prompt", "chosen", "rejected"):
        rows = [{"prompt": f"how {i}", "chosen": "yes", "rejected": "no"} for i in range(5)]
        rows[3][side] = "bad"
        with pytest.raises(InputError, match=r"row 3: .*bad word"):
            encode_pairs(backbone, datasets.Dataset.from_list(rows), VIEWS, show_progress=False)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_prompt_cut_away_whole_has_latent_zero(name: str) -> None:
    """And not its neighbour's last state, nor the mean of nothing."""
    backbone = tiny.backbone(name, max_length=8)
    data = datasets.Dataset.from_list(
        [{"prompt": f"{i}", "chosen": "no " * 20, "rejected": f"{i} " * 30} for i in range(4)]
    )
    made = encode_pairs(backbone, data, VIEWS, show_progress=False)
    assert (made.prompt == 0).all()
    plain = tiny.model(name)
    for i, tokens in enumerate(tokens_of(backbone, data)[4:]):
        assert len(tokens.prompt) == 0
        assert relative(made.rejected[i], tiny.plain_latent(plain, tokens.prompt, tokens.response).numpy()) < 1e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_and_not_stored(tmp_path: Path, value: float) -> None:
    backbone = tiny.backbone()
    recipe = backbone.recipe(VIEWS)
    with torch.no_grad():
        backbone.layers[2].mlp.down_proj.weight[0, 0] = value
    store = Store(tmp_path, recipe)
    tokens = tokens_of(backbone, tiny.pairs(5))
    with pytest.raises(InputError, match="not finite"):
        encode(backbone, recipe, tokens, store)
    assert not store.has(all_keys(tokens)).any()


def test_no_layer_above_the_highest_view_is_run() -> None:
    backbone = tiny.backbone()
    calls = [0] * tiny.DEPTH
    for number, layer in enumerate(backbone.layers):
        layer.register_forward_pre_hook(lambda _m, _i, number=number: calls.__setitem__(number, calls[number] + 1))
    with Forwards(backbone) as forwards:
        encode_pairs(backbone, tiny.pairs(10), ("2:mean", "1:last"), token_budget=BUDGET, show_progress=False)
    assert calls == [len(forwards.sizes)] * 2 + [0, 0]
    backbone.cut(2)
    again = encode_pairs(backbone, tiny.pairs(10), ("2:mean",), show_progress=False)
    assert (
        relative(again.chosen, encode_pairs(tiny.backbone(), tiny.pairs(10), ("2:mean",), show_progress=False).chosen)
        < 1e-5
    )
    with pytest.raises(InputError, match="cut away"):
        encode_pairs(backbone, tiny.pairs(10), ("3:mean",), show_progress=False)


def test_meta_columns_and_groups_come_along(llama: Backbone) -> None:
    rows = [
        {"prompt": p, "chosen": "yes", "rejected": "no", "margin": m, "user_id": u, "source": "s"}
        for p, m, u in (("a", 1.5, "x"), ("b", None, "y"), ("a", 0.5, None))
    ]
    made = encode_pairs(llama, load_pairs(rows), VIEWS, show_progress=False)
    assert made.margin is not None
    assert made.user_id is not None
    np.testing.assert_array_equal(made.margin, [1.5, np.nan, 0.5])
    assert list(made.user_id[:2]) == ["x", "y"]
    assert made.group[0] == made.group[2] != made.group[1]
    assert same(made.chosen[0], made.chosen[2])


@pytest.mark.usefixtures("two_threads")
def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Backbone) -> None:
    """Pairs in many chunks, resumed after a stop in one of them, end with the bits of a run without a stop."""
    data, recipe = tiny.pairs(50), llama.recipe(VIEWS)
    expected = encode_pairs(llama, data, VIEWS, show_progress=False)
    monkeypatch.setattr(encode_module, "CHUNK", 7)
    whole = encode_pairs(llama, data, VIEWS, Store(tmp_path / "a", recipe), token_budget=BUDGET, show_progress=False)
    assert relative(whole.chosen, expected.chosen) < 1e-5
    for stop in (3, 11, 20):
        store = Store(tmp_path / str(stop), recipe)
        count = iter(range(1000))
        write = Store.write

        def failing(
            self: Store, keys: Any, rows: Any, stop: int = stop, count: Any = count, write: Any = write
        ) -> None:
            if next(count) == stop:
                raise KeyboardInterrupt
            write(self, keys, rows)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", failing)
            with pytest.raises(KeyboardInterrupt):
                encode_pairs(llama, data, VIEWS, store, token_budget=BUDGET, show_progress=False)
        resumed = encode_pairs(
            llama, data, VIEWS, Store(tmp_path / str(stop), recipe), token_budget=BUDGET, show_progress=False
        )
        for side in ("chosen", "rejected", "prompt"):
            assert same(getattr(resumed, side), getattr(whole, side))


@pytest.mark.slow
def test_embedded_llm_on_real_pairs(smol: Backbone, shared_data: Path) -> None:
    """fp32, within 1e-4 of transformers' own attention, one sequence at a time."""
    data = load_pairs(shared_data / "hh" / "train.jsonl.gz", limit=60)
    tokens = sorted(tokenize_pairs(smol, data["prompt"][:], data["chosen"][:], data["rejected"][:]), key=len)[:16]
    recipe = smol.recipe(("7:mean", "20:last", "20:mean"))
    store = MemoryStore()
    encode(smol, recipe, tokens, store, token_budget=400)
    made = store.read(stack_keys(item.key for item in tokens))
    for item, latent in zip(tokens, made, strict=True):
        row = torch.from_numpy(np.concatenate([item.prompt, item.response])).long()
        seven, twenty = (state[0, len(item.prompt) :] for state in smol.run_padded([row], (7, 20)))
        expected = torch.cat([seven.mean(0), twenty[-1], twenty.mean(0)]).numpy()
        for part, other in zip(latent.reshape(3, -1), expected.reshape(3, -1), strict=True):
            assert np.linalg.norm(part - other) < 1e-4 * np.linalg.norm(other)


def test_a_prompt_view_is_the_prompts_own_latent_beside_each_response(tmp_path: Path, llama: Backbone) -> None:
    data = tiny.pairs(8)
    views = ("2:last", "2:prompt", "1:mean", "2:prompt_last")
    store = open_store(tmp_path, llama.recipe(views))
    made = encode_pairs(llama, data, views, store, show_progress=False)
    plain = encode_pairs(llama, data, ("2:last", "2:mean", "1:mean"), show_progress=False)
    mean, last = (plain.select((view,)).prompt for view in ("2:mean", "2:last"))
    assert not same(mean, last)
    for side in ("chosen", "rejected", "prompt"):
        assert same(getattr(made.select(("2:prompt",)), side), mean)
        assert same(getattr(made.select(("2:prompt_last",)), side), last)
    for view in ("2:last", "1:mean"):
        assert same(made.select((view,)).chosen, plain.select((view,)).chosen)
    assert same(encode_texts(llama, data["prompt"][:], data["chosen"][:], views, store), made.chosen)
    # The prompt's own latent is kept once, under a recipe that needs no view of the prompt.
    narrow = ("2:last", "2:mean", "1:mean")
    again = encode_pairs(llama, data, narrow, open_store(tmp_path, llama.recipe(narrow)), show_progress=False)
    assert again.meta["encoded_sequences"] == 0
