"""`penchant train`: pairs -> latents -> reward model -> report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from penchant.backbone import DEFAULT, Backbone
from penchant.encode import TOKEN_BUDGET
from penchant.errors import InputError
from penchant.heads import (
    AutoHead,
    CodedHead,
    CommitteeHead,
    ContextHead,
    Head,
    LinearHead,
    MLPHead,
    PCAHead,
    SAELinearHead,
    SparseHead,
)
from penchant.pairs import load_pairs, split_by_prompt
from penchant.responses import load_responses
from penchant.runs import Run, summary, train_run
from penchant.sae.formats import load_sae
from penchant.synthesis.training import check_synthesis, check_unlabelled


def train(
    data: str,
    *,
    out: str | None = None,
    test: str | None = None,
    test_share: float = 0.2,
    model: str = DEFAULT,
    head: Literal["auto", "linear", "mlp", "context", "coded", "pca", "sparse", "sae"] = "auto",
    committee: int = 0,
    use_source: bool = False,
    sae: str | None = None,
    views: list[str] | None = None,
    margin: bool = False,
    label_smoothing: float = 0.0,
    columns: dict[str, str] | None = None,
    on_bad: Literal["error", "skip"] = "error",
    split: str = "train",
    limit: int | None = None,
    gold: str | None = None,
    curve: bool = True,
    cache: str | None = None,
    dtype: str = "auto",
    max_length: int = 2048,
    token_budget: int = TOKEN_BUDGET,
    memory_gb: float | None = None,
    synthesis: Literal["none", "auto", "lens", "noise", "gaussian", "cross", "pca"] = "none",
    factor: int = 8,
    unlabelled: str | None = None,
    seed: int = 0,
) -> None:
    """Train a reward model on preference pairs and evaluate it on held-out ones.

    Args:
        data: hub id, file (.jsonl, .json, .csv, .parquet, .gz) or folder with preference pairs.
        out: folder of the run: model, metrics.json, config.yaml, report.html; runs/TIME-train by default.
        test: pairs to evaluate on; by default a share of the prompts of `data` is held out.
        test_share: that share.
        model: backbone: hub id (or org/name@REVISION), folder, GGUF file, or the embedded default.
        head: auto picks views and strength by cross-validation; linear and mlp use all views given; context lets taste
            vary with the prompt and needs a view of it, such as 24:prompt; coded finds two tastes in mixed preferences
            and which prompts call for which; pca (DRM) can be adapted to a person
            later; sparse (SparseRM) and sae (SARM) stand on the features of --sae.
        committee: fit this many copies of the head on bootstraps of the prompts, so that each score has a spread; 0 is
            no committee.
        use_source: let each source of the pairs have a taste of its own, which scoring infers (coded head).
        sae: folder or hub name of a sparse autoencoder, for the sparse and sae heads.
        views: latents to use, each LAYER:POOLING, for example [20:mean,20:last]; three layers by default.
        margin: use the margin column in the loss (linear head).
        label_smoothing: share of pairs taken to be labelled the wrong way round (linear head).
        columns: the data's column names for ours, for example {question: prompt, win: chosen}.
        on_bad: stop at the first bad row, or skip bad rows, count them and list them in a file.
        split: split of a hub data set or folder.
        limit: read only this many rows.
        gold: best-of-n is measured against the columns GOLD_chosen and GOLD_rejected.
        curve: measure the learning curve too.
        cache: folder of the latents' cache; $PENCHANT_CACHE or ~/.cache/penchant by default.
        dtype: auto, float32 or bfloat16.
        max_length: most tokens of a sequence; the start of the prompt is cut first.
        token_budget: tokens run at once, which bounds memory; 0 takes what suits the device.
        memory_gb: gigabytes of latents in memory at most; training pairs that take more are read from files beside the
            cache, which the linear, mlp and auto heads can do. An eighth of the machine's memory by default.
        synthesis: add synthetic pairs of this kind; auto keeps a kind only if it clearly helps on held-out real pairs.
        factor: pairs for each real one, itself included.
        unlabelled: JSON lines file with a prompt and a response a line that nobody judged, for the synthesizer and for
            the auto and context heads.
        seed: of the split, the folds and the intervals.
    """
    config = dict(locals())
    run = Run(out, "train", config)
    fresh = make_head(head, margin, label_smoothing, seed, sae, committee, use_source)
    check_synthesis(synthesis, factor, fresh)
    others = None
    if unlabelled is not None:
        check_unlabelled(synthesis, fresh)
        others = load_responses(unlabelled)
    skipped = run.folder / "skipped.jsonl" if on_bad == "skip" else None
    pairs = load_pairs(data, split=split, columns=columns, on_bad=on_bad, limit=limit, skipped_file=skipped)
    if test is None:
        pairs, held_out = split_by_prompt(pairs, test_share, seed)
    else:
        held_out = load_pairs(test, split="test", columns=columns, on_bad=on_bad)
    backbone = Backbone.load(model, dtype=dtype, max_length=max_length)
    rm, metrics = train_run(
        pairs,
        held_out,
        (data, test or f"{test_share:.0%} of the prompts, held out"),
        backbone,
        head=fresh,
        views=tuple(views) if views else None,
        cache=cache,
        token_budget=token_budget,
        gold=gold,
        curve=curve,
        seed=seed,
        synthesis=synthesis,
        factor=factor,
        unlabelled=others,
        memory_gb=memory_gb,
    )
    rm.save_pretrained(run.folder / "model")
    report = run.finish({"title": f"Reward model from {data}", **metrics})
    print(summary(metrics))
    print(f"model:  {run.folder / 'model'}\nreport: {report}")


def make_head(
    kind: str,
    margin: bool,
    label_smoothing: float,
    seed: int,
    sae: str | None = None,
    committee: int = 0,
    use_source: bool = False,
) -> Head:
    """An unfitted head."""
    if use_source and kind != "coded":
        raise InputError("use_source belongs to the coded head; add --head coded.")
    if kind != "linear" and (margin or label_smoothing):
        raise InputError("margin and label_smoothing belong to the linear head; add --head linear.")
    if kind in ("sparse", "sae") and sae is None:
        raise InputError(f"the {kind} head stands on a sparse autoencoder; add --sae FOLDER.")
    if kind not in ("sparse", "sae") and sae is not None:
        raise InputError(f"the {kind} head has no use for --sae; add --head sparse or --head sae.")
    makers: dict[str, Callable[[], Head]] = {
        "auto": lambda: AutoHead(random_state=seed),
        "linear": lambda: LinearHead(margin=margin, label_smoothing=label_smoothing, random_state=seed),
        "mlp": lambda: MLPHead(random_state=seed),
        "context": lambda: ContextHead(random_state=seed),
        "coded": lambda: CodedHead(use_source=use_source, random_state=seed),
        "pca": lambda: PCAHead(random_state=seed),
        "sparse": lambda: SparseHead(load_sae(str(sae)), random_state=seed),
        "sae": lambda: SAELinearHead(load_sae(str(sae)), random_state=seed),
    }
    head = makers[kind]()
    if committee:
        head = CommitteeHead(head, committee, seed)
    head.check_arguments()  # before the LLM runs
    return head
