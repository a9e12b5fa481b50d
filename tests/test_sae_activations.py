"""States for an SAE: every token once, the right states, nothing that training must not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from penchant.backbone import load_whole
from penchant.errors import InputError
from penchant.pairs import load_pairs
from penchant.sae import SAEConfig, SparseAutoencoder
from penchant.sae.activations import TokenBlocks, load_texts, template_opening
from penchant.sae.metrics import loss_recovered
from tests import tiny
from tests.tiny_llm import save_tiny_llm, tiny_pairs

LAYER = 2


def blocks(family: str = "llama", data: object = None, **other: object) -> TokenBlocks:
    return TokenBlocks(tiny.backbone(family), data or tiny.pairs(40), LAYER, token_budget=1024, **other)  # type: ignore[arg-type]


def every(found: TokenBlocks) -> Tensor:
    return torch.cat([found.block(i) for i in range(len(found))])


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_states_are_those_of_each_sequence_run_alone_and_each_token_counts_once(family: str) -> None:
    found = blocks(family, block_tokens=300)
    plain, backbone = tiny.model(family), found.backbone
    assert backbone.packed == (family == "llama")
    start = max(1, len(template_opening(backbone)))
    bos = backbone.chat.tokenizer.bos_token_id
    pairs = found.data
    expected, seen = [], set()
    tokens = backbone.chat.encode(pairs["prompt"][:] * 2, pairs["chosen"][:] + pairs["rejected"][:])
    for item in tokens:
        ids = np.concatenate([item.prompt, item.response])
        states = tiny.plain_states(plain, ids)[LAYER]
        for part, (first, last) in (
            (item.prompt_key, (start, len(item.prompt))),
            (item.key, (max(len(item.prompt), 1), len(ids))),
        ):
            if part not in seen:
                seen.add(part)
                expected += [states[i] for i in range(first, last) if ids[i] != bos]
    states = every(found)
    assert len(states) == len(expected)
    # Column by column in order: the same states, whatever their order.
    torch.testing.assert_close(states.sort(0).values, torch.stack(expected).sort(0).values, rtol=1e-3, atol=1e-3)


def test_the_opening_that_all_prompts_share_is_left_out() -> None:
    found = blocks()
    opening = template_opening(found.backbone)
    tokens = [item for i in range(len(found)) for item in found.tokens(i)]
    prompts = {item.prompt_key: item.prompt for item in tokens}
    assert len(opening) >= 1
    assert all(np.array_equal(prompt[: len(opening)], opening) for prompt in prompts.values())
    states = every(found)
    bos = found.backbone.chat.tokenizer.bos_token_id
    inside = sum(int((p[len(opening) :] != bos).sum()) for p in prompts.values())
    inside += sum(int((item.response != bos).sum()) for item in tokens)
    assert len(states) == inside


def test_blocks_part_the_data_and_depend_on_the_seed_alone() -> None:
    one, same, other = (blocks(block_tokens=200, seed=seed) for seed in (0, 0, 1))
    assert len(one) > 3
    assert torch.equal(one.block(2), same.block(2))
    assert not np.array_equal(one.rows[0], other.rows[0])
    assert sorted(np.concatenate(one.rows).tolist()) == list(range(40))
    groups = [set(part.tolist()) for part in one.rows]
    prompts = one.data["prompt"][:]
    where = [{prompts[i] for i in group} for group in groups]
    assert not where[0] & where[1]  # a prompt is whole in one block


def test_states_that_were_kept_are_read_and_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = blocks(keep=tmp_path)
    states = first.block(0)
    again = blocks(keep=tmp_path)
    monkeypatch.setattr(again, "_run", lambda _: pytest.fail("the LLM ran"))
    assert torch.equal(again.block(0), states)
    monkeypatch.undo()
    (path,) = tmp_path.rglob("block-00000-*")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        assert torch.equal(again.block(0), states)
    assert path.read_bytes() == content


def test_plain_texts_are_cut_into_pieces(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"body": "hello there you say no"}\n{"body": "%s"}\n' % ("hello " * 400))
    found = blocks(data=load_texts(file, "body"))
    tokens = [item for i in range(len(found)) for item in found.tokens(i)]
    assert max(map(len, tokens)) == found.backbone.chat.max_length
    assert len(every(found)) <= sum(map(len, tokens)) - len(tokens)
    with pytest.raises(InputError, match="no text in column"):
        load_texts(file)


def test_no_data_and_no_such_layer_are_refused() -> None:
    with pytest.raises(InputError, match="no texts"):
        TokenBlocks(tiny.backbone(), ["a"][:0], LAYER)
    with pytest.raises(InputError, match="LAYER"):
        TokenBlocks(tiny.backbone(), ["a"], 99)


def exact_sae(d: int, layer: int) -> SparseAutoencoder:
    """Reconstructs every state exactly: a latent for each direction and its negative."""
    sae = SparseAutoencoder(SAEConfig(d, 2 * d, "jumprelu", layer=layer))
    with torch.no_grad():
        both = torch.cat([torch.eye(d), -torch.eye(d)])
        sae.W_enc.copy_(both)
        sae.W_dec.copy_(both)
    return sae


def test_an_exact_sae_recovers_all_of_the_loss_and_zeros_recover_none(tmp_path: Path) -> None:
    model, backbone = load_whole(str(save_tiny_llm(tmp_path / "llm")), "float32")
    pairs = load_pairs(tiny_pairs(6))
    found = TokenBlocks(backbone, pairs, 1)
    states = found.block(0)
    sae = exact_sae(backbone.width, 1)
    loss = loss_recovered(model, backbone, sae, found.tokens(0), states.mean(0))
    assert loss.spliced == pytest.approx(loss.plain, abs=1e-5)
    assert loss.recovered == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        sae.W_dec.zero_()
    nothing = loss_recovered(model, backbone, sae, found.tokens(0), states.mean(0))
    assert nothing.spliced == pytest.approx(nothing.zero, abs=1e-6)
    assert abs(loss.plain - loss.zero) > 0.01
    # The plain loss is the model's own.
    item = found.tokens(0)[0]
    ids = torch.from_numpy(np.concatenate([item.prompt, item.response])).long()[None]
    start = max(1, len(template_opening(backbone)))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, start:-1]
    alone = loss_recovered(model, backbone, sae, [item], states.mean(0))
    assert alone.plain == pytest.approx(float(torch.nn.functional.cross_entropy(logits, ids[0, start + 1 :])), abs=1e-5)


def test_the_last_layer_cannot_be_spliced(tmp_path: Path) -> None:
    model, backbone = load_whole(str(save_tiny_llm(tmp_path / "llm")), "float32")
    with pytest.raises(InputError, match="no SAE of layer"):
        loss_recovered(model, backbone, exact_sae(32, backbone.depth), [], torch.zeros(32))
