"""Training with checkpoints: an SAE on kept states, a policy above a frozen trunk, CLaP."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from penchant.backbone import Backbone
from penchant.pairs import load_pairs
from penchant.personal import system
from penchant.personal.clap_training import ClapSettings, train_clap
from penchant.personal.system import PersonalLLM
from penchant.policy.align import align_run
from penchant.policy.policy import Policy
from penchant.policy.settings import Settings
from penchant.sae.activations import TokenBlocks
from penchant.sae.formats import load_sae, save_sae
from penchant.sae.training import TrainingConfig, train_sae
from tests.faults.jobs import Job, digest, of_tensors
from tests.faults.jobs_latents import give_llm
from tests.personal.tiny import prompts


def sae(given: Path, folder: Path) -> str:
    backbone = Backbone.load(str(given / "llm"), dtype="float32")
    texts = load_pairs(str(given / "pairs.jsonl"))["chosen"][:]
    blocks = TokenBlocks(backbone, texts, 2, block_tokens=120, keep=folder / "states")
    config = TrainingConfig(latents=64, k=4, epochs=2, batch=32, dead_after=100)
    found, _ = train_sae(blocks, config, folder, show_progress=False, save_seconds=0.0)
    save_sae(found, folder / "sae")
    return of_tensors(dict(load_sae(folder / "sae").state_dict()))


SETTINGS = Settings(
    steps=6, batch_size=4, lora=4, codes=4, top_layers=1, save_steps=2, log_steps=1, warmup=0.0, learning_rate=5e-3
)


def align(given: Path, folder: Path) -> str:
    pairs = load_pairs(str(given / "pairs.jsonl"))
    train, test = pairs.select(range(16)), pairs.select(range(16, 24))
    _, metrics = align_run(
        train,
        test,
        ("train", "test"),
        SETTINGS,
        folder,
        model=str(given / "llm"),
        dtype="float32",
        max_length=128,
        cache=folder / "cache",
        show_progress=False,
    )
    policy = Policy.from_pretrained(folder / "policy")
    weights = {name: value for name, value in policy.state_dict().items() if "lora" in name or "codes" in name}
    assert weights
    untimed = [{name: value for name, value in row.items() if name != "seconds"} for row in metrics["history"]]
    return digest(of_tensors(weights), untimed, metrics["accuracy"])


CLAP = ClapSettings(begin_epochs=2, epochs=2, prompts=2, others=1)


def clap(given: Path, folder: Path) -> str:
    """Sampled answers, z of the start, CLaP's own training, and how far z may go."""
    system.train_clap = partial(train_clap, save_seconds=0.0)
    PersonalLLM.pretrain(
        prompts(6),
        folder / "system",
        model=str(given / "llm"),
        dtype="float32",
        latent=8,
        answers=3,
        max_new_tokens=6,
        settings=CLAP,
        cache=folder / "cache",
        show_progress=False,
    )
    found = PersonalLLM.load(folder / "system")
    facts = {name: value for name, value in found.facts.items() if name != "sampling"}
    return digest(of_tensors(dict(found.clap.state_dict())), facts)


JOBS = (
    Job("sae", sae, give_llm, shared=False),
    Job("align", align, give_llm, shared=False),
    Job("clap", clap, give_llm, shared=False),
)
