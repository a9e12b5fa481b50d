"""A policy: a causal LLM (all weights or LoRA), the backbone that runs it packed, and a latent before the LM head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm

from penchant.backbone import PROBE_TOLERANCE, Backbone
from penchant.chat import Text
from penchant.errors import InputError
from penchant.policy import saving
from penchant.policy.batches import Layout, TokenPair, batches_of, lay_out, token_pairs
from penchant.policy.codes import PEOPLE, LatentCodes, PairStates
from penchant.policy.log_probs import Responses, Vocabulary
from penchant.policy.losses import PairLogProbs
from penchant.policy.trunk import Trunk
from penchant.workers import run_batches

EVAL_BUDGET = 1024
"""Tokens run at once where nothing is trained."""
Shift = Callable[[PairStates], "Tensor | None"]
"""z [b, d] of some pairs, or None for no z."""
Likelihood = Callable[[PairLogProbs, Tensor], Tensor]
"""[b, K] of the pairs' log-probabilities and of the z [b, d] they were had under."""
Result = TypeVar("Result")


class PolicyOutput(NamedTuple):
    """What a training step needs of b pairs."""

    log_probs: PairLogProbs
    kl: Tensor
    """[b]; zeros for a policy without a latent."""
    prior: Tensor | None
    posterior: Tensor | None
    z: Tensor | None
    """[b, d], what was added; None without a latent."""
    watched: dict[str, PairLogProbs]
    """Where it was asked for: the same pairs under the expectation of the "prior" and of the "posterior"."""
    said: Tensor | None = None
    """[b, K], where it was asked for: the log-likelihood of each pair under each code."""


class Policy(nn.Module):
    """softmax(LMHead(h_t + z)) at every response position, h_t the last hidden state, z from `codes` (none: z = 0).

    Args:
        model: causal LLM, or a PEFT model of one.
        backbone: made from the same model, so that it runs on the same weights.
        codes: the latent; None for plain DPO, IPO or SimPO. Controls in place of codes need only be a `Latent`.
        facts: what config.json says: base model, loss, LoRA, codes.
        trunk: states of the layers below those that are trained, run once; None runs every layer at each step.

    Raises InputError for a model whose logits are not cap tanh(scale (W h + b) / cap).
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        codes: Any = None,
        facts: dict[str, Any] | None = None,
        trunk: Trunk | None = None,
    ) -> None:
        super().__init__()
        self.model, self.backbone, self.codes = model, backbone, codes
        self.facts = facts or {}
        self.trunk = trunk
        self.vocabulary = Vocabulary.of(model)
        self._check_head()
        self.eval()

    @property
    def lm_head(self) -> nn.Linear:
        """logits = lm_head(h + z), before what some models do to them."""
        return self.vocabulary.head

    def run(self, layout: Layout) -> tuple[PairStates, Responses]:
        """The last hidden states of a layout's pairs, and their responses, whose log-probabilities depend on z."""
        device = self.backbone.device
        states = self.trunk.final_states(layout.trees) if self.trunk else self.backbone.final_states(layout.trees)
        b = len(layout.prompt)
        prompt = states[layout.prompt.to(device)] * (layout.prompt >= 0)[:, None].to(device)
        last = states[layout.last.to(device)]
        responses = Responses(
            self.vocabulary, states[layout.before.to(device)], layout.targets.to(device), layout.owner.to(device), b
        )
        return PairStates(prompt, last[:b], last[b:]), responses

    def forward(
        self,
        pairs: Sequence[TokenPair],
        g: float = 1.0,
        watch: bool = False,
        evidence: Tensor | None = None,
        among: tuple[int, int] | None = None,
        likelihood: Likelihood | None = None,
    ) -> PolicyOutput:
        """One training pass over b pairs, with a z of each where there are codes.

        Args:
            evidence, among: as in `PairStates`.
            likelihood: makes `said` of the output. It takes a derivative, which must be done before the forward pass
                is: weights that are sharded are whole until then.
        """
        states, under = self.run(lay_out(pairs, packed=self.backbone.packed))
        if self.codes is None:
            return PolicyOutput(under(None), torch.zeros(len(pairs), device=states.prompt.device), None, None, None, {})
        states = states._replace(evidence=evidence, among=among)
        draw = self.codes.draw(states, g)
        watched = {}
        if watch and isinstance(self.codes, LatentCodes):
            with torch.no_grad():
                watched = under.each({"prior": self.expected(states), "posterior": self.by_posterior(states)})
        log_probs = under(draw.z)
        said = likelihood(log_probs, draw.z) if likelihood is not None else None
        return PolicyOutput(log_probs, draw.kl, draw.prior, draw.posterior, draw.z, watched, said)

    def expected(self, states: PairStates) -> Tensor | None:
        """z from the prior's expectation, what inference takes by default."""
        z: Tensor | None = None if self.codes is None else self.codes.expected(states.prompt)
        return z

    def by_posterior(self, states: PairStates) -> Tensor | None:
        """z from the posterior's expectation: it has seen which response was chosen, or knows who chose."""
        if self.codes is None:
            return None
        z: Tensor = self.codes.z(self.codes.posterior_logits(states).softmax(-1))
        return z

    # ---- inference over many pairs ----------------------------------------------------------------------------------

    def score(
        self,
        pairs: Sequence[TokenPair],
        shifts: Mapping[str, Shift],
        *,
        evidence: Tensor | None = None,
        label: str | None = None,
    ) -> tuple[PairStates, dict[str, PairLogProbs]]:
        """States and, for each named shift, log-probabilities of all pairs, on the CPU; each text is run once.

        `evidence` [n, K], on who judged each pair, is for the posterior "people", see people.py.
        """
        states: list[list[Tensor]] = [[] for _ in pairs]
        found: dict[str, list[list[Tensor]]] = {name: [[] for _ in pairs] for name in shifts}

        @torch.no_grad()
        def work(batch: list[int]) -> tuple[list[Tensor], dict[str, PairLogProbs]]:
            of, under = self.run(lay_out([pairs[i] for i in batch], packed=self.backbone.packed))
            if evidence is not None:
                of = of._replace(evidence=evidence[batch])
            made = under.each({name: shift(of) for name, shift in shifts.items()})
            cpu = {name: PairLogProbs(*(part.cpu() for part in probs)) for name, probs in made.items()}
            return [part.float().cpu() for part in (of.prompt, of.chosen, of.rejected)], cpu

        for batch, (of, made) in self.over_batches(pairs, work, label):
            for at, number in enumerate(batch):
                states[number] = [part[at] for part in of]
                for name, probs in made.items():
                    found[name][number] = [part[at] for part in probs]
        prompt, chosen, rejected = _columns(states)
        seen = PairStates(prompt, chosen, rejected, evidence)
        return seen, {name: PairLogProbs(*_columns(rows)) for name, rows in found.items()}

    def over_batches(
        self, pairs: Sequence[TokenPair], work: Callable[[list[int]], Result], label: str | None = None
    ) -> Iterator[tuple[list[int], Result]]:
        """The pairs' numbers batch by batch, each with what `work` makes of it; nothing is trained meanwhile."""
        training = self.training
        self.eval()
        try:
            with tqdm(total=len(pairs), unit="pair", desc=label, disable=label is None, leave=False) as bar:
                for batch, result in run_batches(self.backbone, batches_of(pairs, EVAL_BUDGET), work):
                    bar.update(len(batch))
                    yield batch, result
        finally:
            self.train(training)
            self.backbone.config._attn_implementation = self.backbone.plain_attention  # for whoever runs it plainly

    def prompt_states(self, prompts: Sequence[Text]) -> Tensor:
        """h_x, float32 [n, d]: the last hidden state at each prompt's last token."""
        items = self.backbone.chat.encode(prompts, ["a"] * len(prompts))
        return self.score([(item, item) for item in items], {})[0].prompt

    def pair_states(self, pairs: Dataset) -> PairStates:
        """Last hidden states of the pairs' prompts and responses, float32 [n, d] each, and what is known of people."""
        return self.score(token_pairs(self.backbone, pairs), {}, evidence=self.known_people(pairs))[0]

    def known_people(self, pairs: Dataset) -> Tensor | None:
        """Evidence [n, K] on who judged each pair, zeros for who is new; None without the posterior "people"."""
        if not isinstance(self.codes, LatentCodes) or self.codes.posterior != PEOPLE:
            return None
        given = pairs["user_id"] if "user_id" in pairs.column_names else [None] * len(pairs)
        number = {name: i for i, name in enumerate(self.facts["people"])}
        known = self.codes.evidence.detach().float().cpu()
        nothing = known.new_zeros(1, known.shape[1])  # for whoever is new
        return torch.cat([known, nothing])[[number.get(who, len(number)) for who in given]]

    def evidence_on(self, person: str) -> Tensor:
        """Evidence [K] on someone whose pairs were trained on, for `generate`; InputError for anyone else."""
        codes, names = self._codes(), self.facts["people"]
        if person not in names:
            told = f"it knows {', '.join(names[:5])}" if names else "train with --posterior people"
            raise InputError(f"this policy knows nobody called {person!r}; {told}.")
        return codes.evidence[names.index(person)].detach().float().cpu()

    @torch.no_grad()
    def prior(self, prompts: Sequence[Text]) -> Tensor:
        """p(z | x), float32 [n, K]."""
        codes = self._codes()
        return codes.prior_logits(self.prompt_states(prompts).to(self.backbone.device)).softmax(-1).cpu()

    @torch.no_grad()
    def posterior(self, pairs: Dataset) -> Tensor:
        """q(z | x, chosen > rejected), or q(z | x, who judged), float32 [n, K]."""
        return self.weights_by_posterior(self.pair_states(pairs))

    @torch.no_grad()
    def weights_by_posterior(self, states: PairStates) -> Tensor:
        """The posterior's code weights, float32 [n, K] on the CPU, of states as `score` returns them."""
        moved: Any = [part.to(self.backbone.device) if part is not None else None for part in states[:4]]
        return self._codes().posterior_logits(PairStates(*moved)).softmax(-1).cpu()

    def log_probs(self, pairs: Dataset, z: Tensor | None = None) -> PairLogProbs:
        """Of the pairs' responses under their z [n, d], or under one z [d] for all, or under none."""
        tokens = token_pairs(self.backbone, pairs)
        if z is None or z.ndim == 1:
            shift = None if z is None else z[None]
            return self.score(tokens, {"": lambda _: shift})[1][""]
        alone = [self.score([pair], {"": _constant(row[None])})[1][""] for pair, row in zip(tokens, z, strict=True)]
        return PairLogProbs(*(torch.cat(part) for part in zip(*alone, strict=True)))

    def _codes(self) -> LatentCodes:
        if not isinstance(self.codes, LatentCodes):
            raise InputError("this policy was trained without codes (codes 0); train one with --codes 64.")
        return self.codes

    @torch.no_grad()
    def _check_head(self) -> None:
        """What is read from the head here must be what the model itself says."""
        ids = torch.randint(self.backbone.vocabulary, (6,), generator=torch.Generator().manual_seed(0))
        ours = self.vocabulary.logits(self.backbone.run_padded([ids], (self.backbone.depth,))[0][0])
        model: Any = self.model
        theirs = model(input_ids=ids[None].to(self.backbone.device), use_cache=False).logits[0].float()
        if (ours - theirs).norm() > PROBE_TOLERANCE.get(self.backbone.dtype, 0.1) * theirs.norm():
            raise InputError(
                f"{self.backbone.name!r} does more to its logits than a linear layer, a scale and a soft cap, so no"
                " latent can be added before them; use another LLM."
            )

    # ---- saving and loading -----------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write config.json, codes.safetensors where there are codes, and adapter/ (LoRA) or model/ (all weights).

        `state` are the weights by name where the policy itself has only parts of them (sharding.py).
        """
        saving.save(self, Path(folder), state)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: str | None = None) -> Policy:
        """The policy that `save_pretrained` wrote; its log-probabilities are equal bit for bit in the same dtype.

        Raises InputError where there is no policy, RecipeMismatch where the base model is not the one it was made on.
        """
        return cls(*saving.load(Path(folder), dtype)).eval().requires_grad_(False)

    def load_state(self, folder: str | Path) -> None:
        """Put the weights of a saved policy of the same shape into this one, as resuming does."""
        saving.load_state(self, Path(folder))


def _columns(rows: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(part) for part in zip(*rows, strict=True)]


def _constant(z: Tensor) -> Shift:
    return lambda _: z
