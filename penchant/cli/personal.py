"""`penchant personal pretrain | fit`: a personal LLM, and the people it knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from penchant.backbone import DEFAULT
from penchant.cli.personal_people import generate, printable, score, users
from penchant.errors import InputError
from penchant.pairs import load_pairs
from penchant.personal.clap_training import ClapSettings
from penchant.personal.encoder import LATENT
from penchant.personal.fit_run import check_out, fit_run
from penchant.personal.fitting import LatentDPOSettings
from penchant.personal.full_encoder import FullEncoderSettings
from penchant.personal.people_pairs import hold_out, with_people
from penchant.personal.system import PersonalLLM
from penchant.personal.watch import latent_warnings
from penchant.processes import is_main
from penchant.prompts import load_prompts
from penchant.report_clap import write_clap_report
from penchant.report_personal import NAMES, write_personal_report
from penchant.runs import Run


def pretrain(
    data: str,
    *,
    out: str,
    model: str = DEFAULT,
    latent: int = LATENT,
    answers: int = 8,
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    published: bool = False,
    adapter: Literal["shift", "positions"] = "shift",
    begin_epochs: int = ClapSettings.begin_epochs,
    epochs: int = ClapSettings.epochs,
    prompts: int = ClapSettings.prompts,
    learning_rate: float = ClapSettings.learning_rate,
    first_stage: float = ClapSettings.first_stage,
    others: int = ClapSettings.others,
    standard_kl: bool = False,
    unfreeze: bool = False,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
    cache: str | None = None,
    dtype: str = "auto",
    max_length: int = 2048,
    seed: int = 0,
) -> None:
    """Make an LLM that can be personal (CLaP): it writes by a small z, found in answers that it samples itself.

    The same command again, with the same --out, goes on where it was cut. Under `accelerate launch` several GPUs share
    the work.

    Args:
        data: hub id, file (.jsonl, .json, .csv, .parquet, .gz) or folder with pairs, of which the prompts are taken, or
            with rows of a prompt alone, or of a prompt and a list of responses, which are used instead of sampled ones.
        out: folder of the personal LLM, with metrics.json, config.yaml and report.html.
        model: LLM: hub id (or org/name@REVISION), folder, GGUF file, or the embedded default.
        latent: size of z, a multiple of 4.
        answers: sampled for each prompt.
        max_new_tokens: longest answer.
        temperature: of the sampling.
        published: train as the paper does: virtual positions, z from nothing, one epoch in two stages. The other
            settings of training are then the paper's, but for unfreeze and standard_kl.
        adapter: what z does to the LLM: shifts its states (ours), or stands in front of the prompt (the paper's).
        begin_epochs: passes over the answers in which the encoder learns what z stands for.
        epochs: passes of CLaP's own training behind that; each makes answers likelier under their z.
        prompts: prompts a step.
        learning_rate: of AdamW, at its peak.
        first_stage: share of the steps with the gradient-only skip and without the contrastive term.
        others: responses that each is told apart from in the second stage; 0 leaves the contrastive term out.
        standard_kl: the usual KL in place of DG-KLD.
        unfreeze: train the LLM's layers too in the second stage, in float32; the system then carries an LLM of its own.
        columns: the data's column names for ours, for example {question: prompt, samples: responses}.
        on_bad: stop at the first bad row, or skip bad rows and count them.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        cache: folder of the latents' cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        dtype: auto, float32 or bfloat16, of the frozen LLM.
        max_length: most tokens of a sequence; the start of the prompt is cut first.
        seed: of the sampling, the weights and the order of the prompts.
    """
    config = dict(locals())
    if published:
        adapter, settings = "positions", ClapSettings.published(standard_kl=standard_kl, unfreeze=unfreeze, seed=seed)
    else:
        settings = ClapSettings(
            begin_epochs=begin_epochs,
            epochs=epochs,
            prompts=prompts,
            learning_rate=learning_rate,
            first_stage=first_stage,
            others=others,
            standard_kl=standard_kl,
            unfreeze=unfreeze,
            seed=seed,
        )
    run = Run(out, "personal", config)
    found = load_prompts(data, columns=columns, on_bad=on_bad, split=split, limit=limit)
    system = PersonalLLM.pretrain(
        found.prompts,
        run.folder,
        responses=found.responses,
        model=model,
        dtype=dtype,
        max_length=max_length,
        latent=latent,
        adapter=adapter,
        cache=cache,
        answers=answers,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        settings=settings,
        seed=seed,
    )
    if not is_main():
        return
    facts = system.facts
    given = sum(map(len, found.responses)) / len(found.responses) if found.responses else None
    metrics = {
        "title": f"Personal LLM from {data}",
        "data": {"name": data, "prompts": len(found.prompts), "skipped": sum(found.skipped.values()), "given": given},
        "system": {"folder": str(run.folder), **{name: facts[name] for name in ("base", "dtype", "latent", "adapter")}},
        "z": facts["figures"],
        **{name: facts.get(name) for name in ("sampling", "settings", "log")},
        "warnings": latent_warnings(facts["figures"]),
        "seed": seed,
    }
    report = run.finish(metrics, write_clap_report)
    print(z_summary(metrics))
    print(f"personal LLM: {run.folder}\nreport: {report}")


def z_summary(metrics: dict[str, Any]) -> str:
    """Whether z is used, in a few lines."""
    z = metrics["z"]
    lines = [
        f"held-out answers: {z['nats_per_token']:.3f} nats a token with their own z, {z['plain']:.3f} without z,"
        f" {z['prior']:.3f} with a z drawn at random; by z a whole answer gains {z['gain']:.2f} nats"
        f" ({z['gain_ci_low']:.2f} to {z['gain_ci_high']:.2f})",
        f"{z['active_units']:.0f} of {metrics['system']['latent']} units of z are active; mutual information with the"
        f" answer {z['mutual_information']:.2f} nats; {z['contrastive_accuracy']:.0%} of {z['responses']:.0f} answers"
        " are likelier under their own z than under that of any other answer to the prompt",
    ]
    return "\n".join([*lines, *(f"warning: {sentence}" for sentence in metrics["warnings"])])


def fit(
    system: str,
    data: str,
    *,
    out: str | None = None,
    user_id: str | None = None,
    test: str | None = None,
    test_share: float = 0.2,
    population: bool | None = None,
    full: bool = False,
    rewards: bool = True,
    read: Literal["auto", "llm", "encoder"] = "auto",
    steps: int | None = None,
    learning_rate: float | None = None,
    beta: float | None = None,
    pull: float | None = None,
    examples: int = 8,
    max_new_tokens: int = 64,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
    cache: str | None = None,
    seed: int = 0,
) -> None:
    """Fit people from the pairs they judged (Latent DPO), keep them, and say whether knowing them pays.

    Who is known goes on from what is known of them. The same command again, with the same --out, fits nobody twice.

    Args:
        system: folder that `penchant personal pretrain` wrote.
        data: hub id, file or folder with preference pairs and a column user_id, who judged each.
        out: folder of the run: metrics.json, config.yaml, report.html; runs/TIME-people by default.
        user_id: who judged all the pairs, where they are one person's.
        test: pairs to judge the fit on; by default a share of each person's prompts is held out.
        test_share: that share.
        population: fit what all share first; by default where the system has none yet and there are two people or more.
        full: fit an encoder of their own for each person, as the authors do, instead of a mean z alone.
        rewards: what all share has tastes, too, which score responses; they take a pass of the LLM over the pairs.
        read: how z of texts is known: by the LLM's latents up to its middle layer, once and cached, or by the encoder,
            which runs no layer of the LLM and knows less; auto is the first where z is still what latents say. Texts
            that the system was pretrained on are not read at all.
        steps: of the encoder's Adam, each on up to 64 pairs; 200 by default. With --full alone.
        learning_rate: of the encoder's Adam; 1e-4 by default. With --full alone.
        beta: of the loss; 0.1 by default.
        pull: how strongly a person is held to what they start from; 0.005 by default. Not with --full.
        examples: held-out prompts that are answered for up to six people; 0 for none, which saves the LLM's answers.
        max_new_tokens: longest answer.
        columns: the data's column names for ours, for example {worker: user_id}.
        on_bad: stop at the first bad row, or skip bad rows, count them and list them in a file.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        cache: folder of the latents' cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        seed: of what is held out, the candidates of z and the intervals.
    """
    config = dict(locals())
    if full and pull is not None:
        raise InputError("--pull belongs to the small form of a person; leave it out with --full")
    if not full and not (steps is None and learning_rate is None):
        raise InputError("--steps and --learning_rate belong to --full; the small form of a person needs neither")
    given = {"steps": steps, "learning_rate": learning_rate, "beta": beta, "pull": pull}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = FullEncoderSettings(**chosen, seed=seed) if full else LatentDPOSettings(**chosen)
    if examples < 0 or max_new_tokens < 1:
        raise InputError(f"examples is {examples} and max_new_tokens {max_new_tokens}; give 0 or more, and 1 or more.")
    if out is not None:
        check_out(Path(out), Path(system))  # before the run's folder is begun
    run = Run(out, "people", config)
    skipped = run.folder / "skipped.jsonl" if on_bad == "skip" else None
    pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit, skipped_file=skipped)
    pairs = with_people(pairs, user_id)
    if test is None:
        pairs, held_out = hold_out(pairs, test_share, seed)
    else:
        held_out = with_people(load_pairs(test, split="test", columns=columns, on_bad=on_bad), user_id)
    metrics = fit_run(
        PersonalLLM.load(system),
        pairs,
        held_out,
        (data, test or f"{test_share:.0%} of each person's prompts, held out"),
        run.folder,
        settings,
        population=population,
        rewards=rewards,
        read=read,
        examples=examples,
        max_new_tokens=max_new_tokens,
        cache=cache,
        seed=seed,
    )
    report = run.finish({"title": f"People of {data}", **metrics}, write_personal_report)
    print(people_summary(metrics))
    print(f"report: {report}")


def people_summary(metrics: dict[str, Any]) -> str:
    """Own against pooled, what answers win, and what it cost, in a few lines."""
    accuracy, cost, data = metrics["accuracy"], metrics["cost"], metrics["data"]
    lines = [
        f"right on {accuracy['longer']['n']:,} held-out pairs of {data['test']['people']:,} people"
        " (95% interval over people and prompts)"
    ]
    lines += [
        f"  {label:<19}  {accuracy[name]['value']:.1%}  ({accuracy[name]['low']:.1%} to {accuracy[name]['high']:.1%})"
        for name, label in NAMES.items()
        if name in accuracy
    ]
    lines += [
        f"own - pooled by {'taste' if kind == 'taste' else 'p(z | x)'}: {100 * gain['value']:+.1f} points"
        f" ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        for kind, gain in metrics["gain"].items()
    ]
    if won := metrics.get("win_rates"):
        overall = won["overall"]
        lines.append(
            f"answers in a person's taste win {overall['value']:.0%} ({overall['low']:.0%} to {overall['high']:.0%})"
            f" against the population's on {won['prompts']} prompts, by that person's own taste"
        )
    lines.append(
        f"fitted {data['train']['people']:,} people in {cost['fit_seconds']:.1f} s"
        f" ({cost['people_per_second']:,.1f} a second); {metrics['system']['people']:,} are known,"
        f" {metrics['system']['bytes_each']:,.0f} bytes each"
    )
    return "\n".join([*lines, *(f"warning: {printable(sentence)}" for sentence in metrics["warnings"])])


VERBS: dict[str, Callable[..., None]] = {
    "pretrain": pretrain,
    "fit": fit,
    "generate": generate,
    "score": score,
    "users": users,
}
