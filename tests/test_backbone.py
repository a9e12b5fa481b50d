"""A backbone's states are transformers' own, whatever the family; nothing above the layer asked for is run."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

from penchant.backbone import Backbone, choose_dtype, load_llm
from penchant.errors import InputError
from tests import tiny

LAYERS = (1, 3, tiny.DEPTH)


def ids(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(tiny.VOCABULARY, (n,), generator=generator) for n in lengths]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_states_are_those_of_each_sequence_alone(family: str) -> None:
    """The last layer too, which is taken after the final norm."""
    backbone, plain = tiny.backbone(family), tiny.model(family)
    assert backbone.packed == (family in tiny.PACKED)
    prompt, first, second, other = ids(33, 5, 19, 11)
    alone = [tiny.plain_states(plain, torch.cat(row)) for row in ((prompt, first), (prompt, second), (other, first))]
    if backbone.packed:
        for number, packed in zip(
            LAYERS, backbone.run_trees([(prompt, [first, second]), (other, [first])], LAYERS), strict=True
        ):
            parts = packed.split([33, 5, 19, 11, 5])
            expected = [
                alone[0][number][:33],
                alone[0][number][33:],
                alone[1][number][33:],
                *alone[2][number].split([11, 5]),
            ]
            assert max(map(relative, parts, expected)) < 1e-5
    rows = [torch.cat(row) for row in ((prompt, first), (prompt, second), (other, first))]
    for number, padded in zip(LAYERS, backbone.run_padded(rows, LAYERS), strict=True):
        for row, states in enumerate(alone):
            assert relative(padded[row, : len(rows[row])], states[number]) < 1e-5


def test_weak_mixing_does_not_hide_what_cannot_be_packed() -> None:
    """With weights as small as a new model's, ALiBi and convolutions change a state by less than bf16 rounding."""
    for family in ("bloom", "lfm2", "gpt-j"):
        assert not Backbone(tiny.model(family, std=0.01), tiny.tokenizer(), "x", "0").packed


def layer_calls(backbone: Backbone) -> Counter[int]:
    calls: Counter[int] = Counter()
    for number, layer in enumerate(backbone.layers, 1):
        layer.register_forward_pre_hook(lambda _m, _i, number=number: calls.update([number]))
    return calls


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_no_layer_above_the_highest_asked_for_is_run(family: str) -> None:
    backbone = tiny.backbone(family)
    calls = layer_calls(backbone)
    (row,) = ids(9)
    backbone.run_padded([row], (1, 2))
    assert calls == {1: 1, 2: 1}
    if backbone.packed:
        backbone.run_trees([(row, [row])], (3,))
        assert calls == {1: 2, 2: 2, 3: 1}


def test_cut_keeps_the_states_below_and_refuses_those_above() -> None:
    whole, cut = tiny.backbone(), tiny.backbone()
    cut.cut(3)
    assert (cut.depth, cut.layers_run, len(cut.layers)) == (tiny.DEPTH, 3, 3)
    assert cut.parameters < whole.parameters
    prompt, response = ids(8, 6)
    for a, b in zip(
        whole.run_trees([(prompt, [response])], (2, 3)), cut.run_trees([(prompt, [response])], (2, 3)), strict=True
    ):
        assert torch.equal(a, b)
    for layers in ((4,), (2, 4)):  # the norm of layer 3 would pass for layer 4
        with pytest.raises(InputError, match="layer 4 was cut away, 3 are left"):
            cut.run_trees([(prompt, [response])], layers)
        with pytest.raises(InputError, match="layer 4 was cut away"):
            cut.run_padded([prompt], layers)
    for layer in (0, 4, -1):
        with pytest.raises(InputError, match="layers 1 to 3"):
            cut.cut(layer)


def test_a_model_with_a_head_gives_states_not_logits() -> None:
    torch.manual_seed(0)
    causal = hf.LlamaForCausalLM(tiny.PACKED["llama"]()).eval()
    backbone = Backbone(causal, tiny.tokenizer(), "x", "0")
    prompt, response = ids(8, 6)
    (states,) = backbone.run_trees([(prompt, [response])], (tiny.DEPTH,))
    assert states.shape == (14, backbone.width)


def test_threads_do_not_mix_their_states() -> None:
    """Each thread asks for another layer of another text, many times at once."""
    backbone = tiny.backbone()
    work = [
        ([(prompt, [response])], (layer,))
        for layer, prompt, response in zip((1, 2, 3, 4), ids(40, 5, 60, 9), ids(3, 30, 8, 50), strict=True)
    ]
    expected = [backbone.run_trees(*job)[0] for job in work]
    wrong: list[int] = []
    gate = threading.Barrier(len(work))

    def run(number: int) -> None:
        gate.wait()
        for _ in range(25):
            if not torch.equal(backbone.run_trees(*work[number])[0], expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_views_are_checked() -> None:
    backbone = tiny.backbone()
    for view in ("0:last", f"{tiny.DEPTH + 1}:last", "1:max", "1", "x:last", "-1:mean", "1:last:mean"):
        with pytest.raises(InputError, match="LAYER:POOLING"):
            backbone.recipe((view,))
    for views in ((), ("1:last", "1:last")):
        with pytest.raises(InputError, match="once each"):
            backbone.recipe(views)
    with pytest.raises(InputError, match="the same for every response"):
        backbone.recipe(("1:prompt",))
    assert backbone.recipe(("2:mean", "1:last")).layers == (1, 2)
    assert backbone.recipe(backbone.default_views()).width == 32


def test_recipe_tells_templates_lengths_and_models_apart() -> None:
    views = ("2:mean",)
    plain = tiny.backbone().recipe(views)
    assert plain == tiny.backbone().recipe(views)
    others = [
        tiny.backbone(tok=tiny.tokenizer(None)).recipe(views),
        tiny.backbone(max_length=128).recipe(views),
        tiny.backbone("mistral").recipe(views),
        tiny.backbone().recipe(("2:last",)),
    ]
    assert len({recipe.fingerprint for recipe in [plain, *others]}) == 5


def test_positions_bound_the_length() -> None:
    assert tiny.backbone(max_length=10_000).chat.max_length == 512
    assert tiny.backbone("bloom", max_length=10_000).chat.max_length == 10_000  # ALiBi has no end
    config = tiny.PACKED["phi3"]()
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [9.0] * 4,
        "original_max_position_embeddings": 64,
    }
    config.original_max_position_embeddings = 64
    backbone = Backbone(hf.AutoModel.from_config(config).float(), tiny.tokenizer(), "x", "0")
    assert backbone.chat.max_length == 64  # one longer text would change the latents of its whole batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    hf.LlamaForCausalLM(tiny.PACKED["llama"]()).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def test_a_folder_loads_and_one_changed_weight_is_another_revision(folder: Path) -> None:
    prompt, response = ids(8, 6)
    first, again = (Backbone.load(str(folder), dtype="float32") for _ in range(2))
    assert first.recipe(("1:last",)) == again.recipe(("1:last",))
    assert first.packed
    assert first.dtype == torch.float32
    assert first.dtype_reason
    assert not any(parameter.requires_grad for parameter in first.model.parameters())
    plain = hf.AutoModel.from_pretrained(folder)
    expected = tiny.plain_states(plain, torch.cat([prompt, response]))[2]
    assert relative(first.run_trees([(prompt, [response])], (2,))[0], expected) < 1e-5
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert Backbone.load(str(folder), dtype="float32").revision != first.revision


def test_threads_that_load_at_once_leave_transformers_as_it_was(folder: Path) -> None:
    before = hf.PreTrainedModel.tie_weights

    def load(_: int) -> None:
        load_llm(str(folder), "float32")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(16)))
    assert hf.PreTrainedModel.tie_weights is before


def test_bf16_packs_and_stays_near_fp32(folder: Path) -> None:
    low, high = (Backbone.load(str(folder), dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert low.packed
    assert low.recipe(("2:last",)).dtype == "bfloat16"
    prompt, response = ids(40, 20)
    for a, b in zip(*(each.run_trees([(prompt, [response])], LAYERS) for each in (low, high)), strict=True):
        assert 1e-5 < relative(a.float(), b) < 0.1


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c", "~/nothing/at/all", "missing.gguf"])
def test_what_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError) as caught:
        Backbone.load(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_or_with_a_broken_one_is_one_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="cannot load the backbone"):
        Backbone.load(str(tmp_path))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot load the backbone"):
        Backbone.load(str(tmp_path))


def test_dtype_wishes() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu)[0] == torch.float32
    assert choose_dtype("bfloat16", cpu)[0] == torch.bfloat16
    assert choose_dtype("auto", cpu)[1].startswith("the CPU has")
    with pytest.raises(InputError, match="float16"):
        choose_dtype("float16", cpu)


def test_a_model_without_decoder_layers_is_refused() -> None:
    class Odd(nn.Module):
        config: Any = tiny.PACKED["llama"]()
        base_model = property(lambda self: self)

    with pytest.raises(InputError, match="no list of 4 decoder layers"):
        Backbone(Odd(), tiny.tokenizer(), "x", "0")  # type: ignore[arg-type]
