"""Training an SAE: sparse gradients equal dense ones, runs resume bit for bit, dead latents come back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from penchant.errors import InputError
from penchant.sae import losses
from penchant.sae.autoencoder import SAEConfig, SparseAutoencoder
from penchant.sae.losses import jump_relu_loss, sparse_loss
from penchant.sae.metrics import quality
from penchant.sae.training import CHECKPOINT, Trainer, TrainingConfig, train_sae

D, M, K = 16, 64, 4


class Made:
    """Blocks of states that really are sums of few directions, so that an SAE has something to find."""

    def __init__(self, blocks: int = 4, rows: int = 512, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        directions = F.normalize(torch.randn(M, D, generator=generator), dim=1)
        weights, here = (torch.rand(blocks, rows, M, generator=generator) for _ in range(2))
        self.states = (weights * (here < K / M)) @ directions + 0.3
        self.asked: list[int] = []
        self.digest = f"{blocks} {rows} {seed}"

    def __len__(self) -> int:
        return len(self.states)

    def block(self, number: int) -> Tensor:
        self.asked.append(number)
        return self.states[number]


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the largest pre-activations in fp32, on any chip."""
    monkeypatch.setattr(losses, "choose_dtype", lambda *_: (torch.float32, "for the test"))


def config(**other: object) -> TrainingConfig:
    return replace(TrainingConfig(latents=M, k=K, batch=128, dead_after=400), **other)  # type: ignore[arg-type]


def shaken(architecture: str = "topk") -> SparseAutoencoder:
    """An SAE whose encoder is not its decoder's transpose and whose biases are not 0."""
    sae = SparseAutoencoder.random(SAEConfig(D, M, architecture, K))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return sae


def dense_loss(sae: SparseAutoencoder, x: Tensor, whole_batch: bool) -> Tensor:
    """The same loss as the paper writes it: all products of whole matrices, a mask for what is kept."""
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    if whole_batch:
        kept = torch.zeros(pre.numel()).index_fill(0, pre.flatten().topk(K * len(x)).indices, 1.0).view_as(pre)
    else:
        kept = torch.zeros_like(pre).scatter(1, pre.topk(K, dim=1).indices, 1.0)
    found = (pre.relu() * kept) @ sae.W_dec + sae.b_dec
    return (x - found).square().sum() / (x - x.mean(0)).square().sum()


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_sparse_gradients_are_the_dense_ones(architecture: str) -> None:
    x = Made().states[0]
    sae, other = shaken(architecture), shaken(architecture)
    mine = sparse_loss(sae, x, torch.zeros(M, dtype=torch.bool), config(architecture=architecture)).loss
    mine.backward()
    theirs = dense_loss(other, x, architecture == "batchtopk")
    theirs.backward()
    torch.testing.assert_close(mine, theirs)
    for (name, a), b in zip(sae.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None, name
        assert float(a.grad.norm()) > 0, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_batchtopk_keeps_k_a_state_on_average_and_more_where_there_is_more() -> None:
    x = Made().states[0]
    x[:100] *= 4
    kept = losses.largest(shaken("batchtopk"), x, torch.zeros(M), config(architecture="batchtopk"))
    counts = torch.bincount(kept.rows, minlength=len(x))
    assert int(counts.sum()) == K * len(x)
    assert float(counts[:100].float().mean()) > 2 * float(counts[100:].float().mean())


def test_aux_loss_moves_dead_latents_alone() -> None:
    sae, x = shaken(), Made().states[0]
    dead = torch.zeros(M, dtype=torch.bool)
    dead[:10] = True
    losses.aux_loss(sae, x, x - sae(x).detach(), sae.b_enc, dead).backward()
    for parameter in (sae.W_enc, sae.W_dec):
        moved = parameter.grad.norm(dim=1) > 0  # type: ignore[union-attr]
        assert bool(moved[:10].any())
        assert not bool(moved[10:].any())


def test_jump_relu_thresholds_rise_where_too_many_fire() -> None:
    x, many = Made().states[0], config(architecture="jumprelu", k=1)
    sae = Trainer.start(many, x).sae
    with torch.no_grad():
        sae.threshold.fill_(0.05)  # far too low for k = 1
    jump_relu_loss(sae, x, torch.zeros(M, dtype=torch.bool), replace(many, l0_weight=1e3)).loss.backward()
    assert float(sae.threshold.grad.mean()) < 0  # type: ignore[union-attr]


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_training_explains_the_variance_with_about_k_latents(architecture: str) -> None:
    made = Made(blocks=8)
    sae, progress = train_sae(made, config(architecture=architecture, epochs=15), show_progress=False)
    found = quality(sae, [Made(1, seed=0).states[0], made.states[1]])
    start = progress.log[0]["loss"]
    assert found.variance_explained > 0.7
    assert 1 - found.variance_explained < start / 2
    assert K * 0.5 < found.l0 < K * 1.5
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_resumed_equals_uninterrupted_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    settings = config(architecture=architecture, epochs=2)
    whole, progress = train_sae(Made(), settings, tmp_path / "whole", show_progress=False)

    class Stops(Made):
        def block(self, number: int) -> Tensor:
            if len(self.asked) == 6:  # in the second epoch
                raise KeyboardInterrupt
            return super().block(number)

    with pytest.raises(KeyboardInterrupt):
        train_sae(Stops(), settings, tmp_path, show_progress=False, save_seconds=0)
    rest = Made()
    resumed, again = train_sae(rest, settings, tmp_path, show_progress=False, save_seconds=0)
    assert len(rest.asked) == 2  # nothing is done twice
    assert again.tokens == progress.tokens
    assert again.log == progress.log
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    left = load_file(tmp_path / CHECKPOINT)
    for name, value in load_file(tmp_path / "whole" / CHECKPOINT).items():  # Adam's state included
        assert torch.equal(value, left[name]), name


def test_a_resumed_run_knows_how_long_each_latent_was_silent(tmp_path: Path) -> None:
    trainer = Trainer.start(config(), Made().states[0])
    trainer.silent += torch.arange(M)
    trainer.save(tmp_path / CHECKPOINT)
    assert torch.equal(Trainer.resume(tmp_path / CHECKPOINT, config(), {}).silent, torch.arange(M))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train_sae(Made(), config(), tmp_path, show_progress=False)
    assert (tmp_path / CHECKPOINT).is_file()
    with pytest.raises(InputError, match="another k, seed; give the same"):
        train_sae(Made(), config(k=2, seed=1), tmp_path, show_progress=False)


def test_a_checkpoint_of_other_states_is_refused(tmp_path: Path) -> None:
    train_sae(Made(), config(), tmp_path, show_progress=False, layer=3, model="a/b")
    with pytest.raises(InputError, match="another layer, model; give the same"):
        train_sae(Made(), config(), tmp_path, show_progress=False, layer=4, model="c/d")
    with pytest.raises(InputError, match="another blocks"):
        train_sae(Made(blocks=3), config(), tmp_path, show_progress=False, layer=3, model="a/b")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    train_sae(Made(), config(), tmp_path, show_progress=False)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    before = {"config": "{}", "sae": "{}"}  # as runs wrote it that kept their settings elsewhere
    save_file({"sae.W_enc": torch.zeros(2)}, tmp_path / "old", {"facts": json.dumps(before)})
    for other in (b"", whole[:100], whole[:-1], (tmp_path / "old").read_bytes()):
        path.write_bytes(other)
        with pytest.raises(InputError, match="damaged, or of another version; delete it") as caught:
            train_sae(Made(), config(), tmp_path, show_progress=False)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    train_sae(Made(), config(), tmp_path, show_progress=False)


def test_states_that_say_nothing_are_refused() -> None:
    made = Made()
    made.states[:] = 0
    with pytest.raises(InputError, match="no state other than 0"):
        train_sae(made, config(), show_progress=False)
    with pytest.raises(InputError, match="do not vary"):
        quality(shaken(), [torch.ones(4, D)])


def test_auxk_revives_dead_latents() -> None:
    made = Made(blocks=8)

    def dead_after(aux_weight: float) -> int:
        settings = config(aux_weight=aux_weight, epochs=12)
        trainer = Trainer.start(settings, made.states[0])
        with torch.no_grad():
            trainer.sae.W_enc[: M // 2] *= 0.01  # half of them are never among the largest
        for number in range(settings.epochs * len(made)):
            trainer.block(made.states[number % len(made)], 0.1, 0.0)
        return int((trainer.silent >= settings.dead_after).sum())

    without = dead_after(0.0)
    assert without > M // 3
    assert dead_after(1.0) < without // 2


def test_states_that_are_not_finite_are_refused() -> None:
    made = Made()
    made.states[:, 3, 3] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        train_sae(made, config(), show_progress=False)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"k": 0}, "k is 0"), ({"learning_rate": 0.0}, "learning_rate"), ({"epochs": -1}, "epochs")]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config(**wrong)


def test_quality_is_that_of_the_definition() -> None:
    sae, x = shaken(), Made().states[0]
    found = quality(sae, [x[:100], x[100:]])
    back = sae(x).detach()
    explained = 1 - float((x - back).square().sum() / (x - x.mean(0)).square().sum())
    np.testing.assert_allclose(found.variance_explained, explained, rtol=1e-5)
    fired = (sae.encode(x) > 0).any(0)
    assert found.dead_share == pytest.approx(1 - float(fired.float().mean()))
    assert found.states == len(x)
