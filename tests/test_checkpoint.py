"""A run in one file: put back bit for bit, and every other file refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from penchant.checkpoint import load_run, read_run, save_run
from penchant.errors import InputError

MADE_WITH = {"rate": 0.1, "texts": "abc"}


def module(width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 4), nn.Linear(4, 2), nn.BatchNorm1d(2))


def train(net: nn.Module, adam: torch.optim.Optimizer, steps: range) -> None:
    """Steps of which the first three leave the first layer out."""
    for step in steps:
        net[0].requires_grad_(step >= 3)  # type: ignore[index]
        adam.zero_grad()
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        net(x).square().sum().backward()
        adam.step()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("saved", [2, 5])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, fused: bool, saved: int) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = module()
        parts: list[dict[str, Any]] = [{"params": net[1:].parameters()}, {"params": net[0].parameters(), "lr": 0.01}]  # type: ignore[index]
        return net, torch.optim.AdamW(parts, 0.1, fused=fused)

    path = tmp_path / "new" / "run.safetensors"
    net, adam = start()
    train(net, adam, range(saved))
    save_run(path, net, adam, {"made_with": MADE_WITH, "log": [1.5]}, silent=torch.arange(3))
    train(net, adam, range(saved, 8))
    again, other = start()
    tensors, facts = read_run(path, MADE_WITH)
    save_run(path, net, adam, {"made_with": MADE_WITH, "log": []}, silent=torch.zeros(3))  # by another process
    assert facts["log"] == [1.5]
    assert torch.equal(load_run(path, tensors, again, other)["silent"], torch.arange(3))
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.01]
    train(again, other, range(saved, 8))
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert list(path.parent.iterdir()) == [path]


def test_every_other_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path, net = tmp_path / "run.safetensors", module()
    adam = torch.optim.Adam(net.parameters())
    save_run(path, net, adam, {"made_with": MADE_WITH})
    whole = path.read_bytes()

    def refused(words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            read_run(path, MADE_WITH)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    for part in (b"", b"\xff" * 100, whole[:20], whole[:-10]):
        path.write_bytes(part)
        refused("damaged")
    for facts in (None, {"facts": "{"}, {"facts": "[]"}, {"facts": "{}"}, {"other": "{}"}):
        save_file({"a": torch.zeros(2)}, path, facts)
        refused("of another version")
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])  # a weight is another
    refused("damaged")
    save_run(path, net, adam, {"made_with": {**MADE_WITH, "rate": 0.2}})
    refused("another rate; give the same settings")
    save_run(path, net, adam, {"made_with": {"rate": 0.1}})
    refused("another texts")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path, net = tmp_path / "run.safetensors", module()
    save_run(path, net, torch.optim.Adam(net.parameters()), {"made_with": MADE_WITH})
    for other in (module(5), nn.Linear(3, 4)):
        with pytest.raises(InputError, match="other names or sizes") as caught:
            load_run(path, read_run(path, MADE_WITH)[0], other, torch.optim.Adam(other.parameters()))
        assert "\n" not in str(caught.value)
