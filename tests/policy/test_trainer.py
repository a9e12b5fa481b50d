"""Training: TRL's trainer as an oracle, codes that are switched off, resuming bit for bit, and what is logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from penchant.backbone import Backbone, load_whole
from penchant.errors import InputError
from penchant.policy.align import make_trainer, train_policy
from penchant.policy.batches import TokenPair, token_pairs
from penchant.policy.build import make_policy
from penchant.policy.checkpoints import STATE, identity, last_checkpoint
from penchant.policy.losses import PairLogProbs
from penchant.policy.policy import Policy
from penchant.policy.reference import reference_log_probs
from penchant.policy.settings import Settings
from penchant.policy.trainer import AlignTrainer
from penchant.writing import SEAL, seal
from tests.policy.conftest import Maker
from tests.tiny_llm import tiny_tokenizer

STEPS = 6


def reference_of(policy: Policy, tokens: list[TokenPair], tmp_path: Path) -> PairLogProbs:
    return reference_log_probs(policy, tokens, tmp_path / "cache")[0]


def trainer_of(make: Maker, tmp_path: Path, name: str = "run", **settings: Any) -> AlignTrainer:
    given = {"steps": STEPS, "learning_rate": 5e-3, "warmup": 0.0, "batch_size": 4, "log_steps": 1, **settings}
    policy, tokens = make(**given)
    reference = reference_of(policy, tokens, tmp_path)
    made = Settings(**{"codes": 4, "lora": 4, **given})
    return make_trainer(policy, made.make_loss(), tokens, reference, made, tmp_path / name, show_progress=False)


def losses(trainer: Any) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def trained(trainer: AlignTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_without_codes_equal_to_trls_dpo_trainer(
    make: Maker, tiny_llm: Path, tmp_path: Path, loss: str, pairs: Dataset
) -> None:
    ours = trainer_of(make, tmp_path, loss=loss, codes=0, lora=0)
    ours.args.train_sampling_strategy = "sequential"
    tokens = [item[0] for item in ours.train_dataset]  # type: ignore[union-attr]
    llm, backbone = load_whole(str(tiny_llm), "float32")
    llm.requires_grad_(True)
    reference, _ = load_whole(str(tiny_llm), "float32")
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        loss_type=[{"dpo": "sigmoid", "ipo": "ipo"}[loss]],
        beta=0.1,
        per_device_train_batch_size=4,
        max_steps=STEPS,
        learning_rate=5e-3,
        logging_steps=1,
        train_sampling_strategy="sequential",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        warmup_steps=0,
        lr_scheduler_type="linear",
        max_length=None,
    )
    theirs = DPOTrainer(llm, reference, args=arguments, train_dataset=pairs, processing_class=backbone.chat.tokenizer)
    columns = {
        "prompt_ids": [c.prompt.tolist() for c, _ in tokens],
        "chosen_ids": [c.response.tolist() for c, _ in tokens],
        "rejected_ids": [r.response.tolist() for _, r in tokens],
    }
    theirs.train_dataset = Dataset.from_dict(columns)
    theirs.train()
    ours.train()
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-4)
    assert losses(ours)[-1] < losses(ours)[0] - 0.01  # something was learned


def test_one_code_of_zeros_equals_no_codes(make: Maker, tmp_path: Path) -> None:
    plain = trainer_of(make, tmp_path, "plain", codes=0)
    coded = trainer_of(make, tmp_path, "coded", codes=1)
    assert coded.policy.codes is not None
    torch.nn.init.zeros_(coded.policy.codes.codebook)
    coded.policy.codes.codebook.requires_grad_(False)
    coded.policy.model.load_state_dict(plain.policy.model.state_dict())
    for trainer in (plain, coded):
        trainer.args.max_grad_norm = 0.0  # parameters more, be their gradients zero, change the norm's last bits
        trainer.train()
    assert losses(plain) == losses(coded)
    for (_, a), (_, b) in zip(
        plain.policy.model.named_parameters(), coded.policy.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_codes_do_change_the_training(make: Maker, tmp_path: Path) -> None:
    plain, coded = trainer_of(make, tmp_path, "plain", codes=0), trainer_of(make, tmp_path, "coded")
    coded.train()
    plain.train()
    assert losses(plain) != losses(coded)
    fresh = make()[0].codes
    assert not torch.equal(fresh.codebook, coded.policy.codes.codebook)
    assert coded.policy.codes.prior_net[-1].weight.abs().max() > 0
    assert coded.policy.codes.posterior_net[-1].weight.abs().max() > 0


@pytest.mark.parametrize("settings", [{}, {"lora": 0}, {"top_layers": 1}])
def test_resumed_equals_uninterrupted_bit_for_bit(make: Maker, tmp_path: Path, settings: dict[str, int]) -> None:
    whole = trainer_of(make, tmp_path, "whole", save_steps=3, **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-3"
    again = trainer_of(make, tmp_path, "again", save_steps=3, **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert losses(again) == losses(whole)
    ours, theirs = trained(again), trained(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    files = [tmp_path / name / "metrics.jsonl" for name in ("whole", "again")]
    rows = [[json.loads(line) | {"seconds": 0} for line in file.open()] for file in files]
    assert len(rows[0]) == STEPS
    assert rows[0] == rows[1]


def test_a_checkpoint_holds_no_pickle_and_one_of_pickles_is_refused(make: Maker, tmp_path: Path) -> None:
    trainer_of(make, tmp_path, save_steps=1, steps=1).train()
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    own = {"config.json", "codes.safetensors", "adapter", "optimizer.safetensors", "random.safetensors", STATE, SEAL}
    assert {path.name for path in checkpoint.iterdir()} == own
    for path in tmp_path.rglob("*"):
        if path.suffix == ".safetensors":
            load_file(path)  # it may begin with any byte
        elif path.is_file():  # a pickle, and the zip that torch.save makes
            assert not path.read_bytes().startswith((b"\x80", b"PK")), path
    (checkpoint / "optimizer.safetensors").rename(checkpoint / "optimizer.pt")
    with pytest.raises(InputError, match="as an older Penchant wrote it"):
        trainer_of(make, tmp_path, save_steps=1, steps=2).train(resume_from_checkpoint=str(checkpoint))


def test_micro_batches_give_the_step_of_the_whole_batch(make: Maker, tmp_path: Path) -> None:
    whole, parts = (trainer_of(make, tmp_path, str(m), codes=0, micro_batch=m) for m in (4, 1))
    whole.train()
    parts.train()
    assert losses(whole) == pytest.approx(losses(parts), abs=1e-4)


def test_gradient_checkpointing_changes_memory_alone(make: Maker, tmp_path: Path) -> None:
    plain, checked = (trainer_of(make, tmp_path, str(c), gradient_checkpointing=c) for c in (False, True))
    calls: list[int] = []
    checked.policy.backbone.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    plain.train()
    checked.train()
    assert len(calls) == 2 * STEPS  # each layer ran again in the backward pass
    assert losses(plain) == pytest.approx(losses(checked), abs=1e-5)


def test_the_schedule_of_g_and_what_is_logged(make: Maker, tmp_path: Path) -> None:
    trainer = trainer_of(make, tmp_path, code_rate=0.02, net_rate=0.007)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    rows = [row for row in rows if "loss" in row]
    assert [row["g"] for row in rows] == pytest.approx([step / (STEPS - 1) for step in range(STEPS)])
    wanted = {"step", "loss", "accuracy", "margin", "kl", "perplexity", "top_share", "gap", "learning_rate", "seconds"}
    assert all(wanted <= row.keys() for row in rows)
    assert rows[0]["kl"] == 0
    assert rows[-1]["kl"] > 0
    groups = trainer.optimizer.param_groups  # type: ignore[union-attr]
    assert [group["initial_lr"] for group in groups] == [5e-3, 0.02, 0.007]
    assert [p.shape for p in groups[1]["params"]] == [trainer.policy.codes.codebook.shape]


def test_training_raises_the_margins_it_trains_on(make: Maker, tmp_path: Path) -> None:
    for loss in ("dpo", "ipo", "simpo"):
        trainer = trainer_of(make, tmp_path, loss, loss=loss, steps=30, batch_size=8, save_steps=0)
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        assert rows[-1]["accuracy"] > 0.9, loss
        assert rows[-1]["loss"] < rows[0]["loss"], loss


def test_the_reference_is_computed_once_and_cached_by_content(make: Maker, tmp_path: Path) -> None:
    policy, tokens = make()
    first, _ = reference_log_probs(policy, tokens, tmp_path)
    runs: list[int] = []
    policy.backbone.layers[0].register_forward_hook(lambda *_: runs.append(1))
    again, _ = reference_log_probs(policy, tokens[::-1], tmp_path)
    assert not runs
    assert torch.equal(again.chosen, first.chosen.flip(0))
    assert torch.equal(again.rejected_tokens, first.rejected_tokens.flip(0))
    swapped, _ = reference_log_probs(policy, [(r, c) for c, r in tokens], tmp_path)
    assert not runs
    assert torch.equal(swapped.chosen, first.rejected)


def test_all_weights_are_trained_in_float32_or_not_at_all(tiny_llm: Path) -> None:
    """bf16 weights would swallow AdamW's small steps."""
    for settings in (Settings(lora=0), Settings(lora=0, top_layers=1)):
        llm, backbone = load_whole(str(tiny_llm), "bfloat16")
        with pytest.raises(InputError, match="trained in float32"):
            make_policy(llm, backbone, settings)


def test_adapters_are_float32_on_a_bf16_llm_and_start_as_the_reference(
    tiny_llm: Path, pairs: Dataset, tmp_path: Path
) -> None:
    llm, backbone = load_whole(str(tiny_llm), "bfloat16")
    tokens = token_pairs(backbone, pairs)
    reference, _ = reference_log_probs(Policy(llm, backbone), tokens, tmp_path)
    policy = make_policy(llm, backbone, Settings(codes=0, lora=4), asked=(str(tiny_llm), None))
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    found = policy.score(tokens, {"": policy.expected})[1][""]
    margins = Settings().make_loss().margins(found, reference)
    assert margins.abs().max() < 0.02  # beta times the rounding of other batches
    policy.save_pretrained(tmp_path / "policy")
    loaded = Policy.from_pretrained(tmp_path / "policy")
    assert torch.equal(loaded.score(tokens, {"": loaded.expected})[1][""].chosen, found.chosen)


def test_dropout_is_off_as_in_trl() -> None:
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tiny_tokenizer()), n_embd=32, n_layer=2, n_head=4, n_positions=256
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    backbone = Backbone(model, tiny_tokenizer(), "gpt2", "1", max_length=128)
    policy = make_policy(model, backbone, Settings(lora=0, codes=0)).train()
    item = tuple(backbone.chat.encode(["Name a river."] * 2, ["The long one.", "No."]))
    first, second = (policy([item]).log_probs.chosen for _ in range(2))
    assert torch.equal(first, second)


def test_only_sides_that_are_missing_are_run_for_the_reference(make: Maker, tmp_path: Path) -> None:
    policy, tokens = make()
    first, _ = reference_log_probs(policy, tokens[:6], tmp_path)
    ran: list[int] = []
    run = policy.run
    policy.run = lambda layout: ran.append(len(layout.targets)) or run(layout)  # type: ignore[method-assign]
    mixed = [(tokens[i][0], tokens[i + 6][1]) for i in range(6)]  # one side known
    found, _ = reference_log_probs(policy, mixed, tmp_path)
    assert torch.equal(found.chosen, first.chosen)
    assert sum(ran) == sum(len(r.response) for _, r in tokens[6:12])


def test_a_finished_run_is_taken_over_and_not_trained_further(make: Maker, tmp_path: Path) -> None:
    settings = Settings(codes=4, lora=4, steps=4, batch_size=4, save_steps=2, learning_rate=5e-3)
    weights, steps = [], []
    for _ in range(2):
        policy, tokens = make(steps=4, batch_size=4, save_steps=2, learning_rate=5e-3)
        reference = reference_of(policy, tokens, tmp_path)
        trainer = train_policy(
            policy, settings.make_loss(), tokens, reference, settings, tmp_path / "run", show_progress=False
        )
        weights.append(trained(trainer))
        steps.append(trainer.stepped)
        assert trainer.state.global_step == 4
    assert steps == [4, 0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[-1]["step"] == 4


def test_another_runs_checkpoints_and_half_written_ones_are_not_used(make: Maker, tmp_path: Path) -> None:
    policy, tokens = make()
    settings = Settings(codes=4, lora=4)
    mine = identity(policy, settings, tokens)
    assert last_checkpoint(tmp_path, mine) is None
    for step, whole in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_text("numbers")
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        if whole:
            seal(tmp_path / f"checkpoint-{step}")
    found = last_checkpoint(tmp_path, mine)
    assert found is not None
    assert found.name == "checkpoint-10"
    (found / "optimizer.pt").write_text("number5")
    with pytest.warns(UserWarning, match=r"checkpoint-10/optimizer.pt is damaged"):
        earlier = last_checkpoint(tmp_path, mine)
    assert earlier is not None
    assert earlier.name == "checkpoint-2"
    for other in (
        identity(policy, Settings(codes=4, lora=4, loss="ipo"), tokens),
        identity(policy, settings, tokens[1:]),
    ):
        with pytest.raises(InputError, match=r"belongs to a run with other (loss|pairs)"):
            last_checkpoint(tmp_path, other)
    for damage in (lambda path: path.write_text('{"base'), Path.unlink):
        damage(tmp_path / "made_with.json")
        with pytest.raises(InputError, match=r"made_with.json is missing or damaged.*delete .* to begin anew"):
            last_checkpoint(tmp_path, mine)
