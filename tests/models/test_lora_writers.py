"""What diffusers and peft write of a LoRA changes each layer as it does in their own models."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor

from aesthetic.models import lora, lora_file
from aesthetic.models.loading import Model
from tests.original import difference

RANK, ALPHA = 3, 6
TARGETS = {"unet": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"], "text_encoder": ["q_proj", "out_proj"]}

Parts = Mapping[str, Any]  # the UNet and the text encoder, with an adapter of peft's in each


def config(part: str) -> Any:
    return peft.LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights=False, target_modules=TARGETS[part])


def plain(model: Model) -> dict[str, Any]:
    return {"unet": model.pipeline.unet, "text_encoder": model.encoder.text_model}


@pytest.fixture(scope="module")
def adapted(model: Model) -> Parts:
    """Copies of both parts with random changes, whose alpha is not the rank."""
    parts = copy.deepcopy(plain(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, part in parts.items():
            part.add_adapter(config(name))
            for weight in (weight for key, weight in part.named_parameters() if "lora_" in key):
                torch.nn.init.normal_(weight, std=0.05)
    return parts


def states(parts: Parts) -> dict[str, dict[str, Tensor]]:
    return {name: peft.get_peft_model_state_dict(part, adapter_name="default") for name, part in parts.items()}


def prefixed(parts: Parts) -> dict[str, Tensor]:
    return {f"{name}.{key}": factor for name, state in states(parts).items() for key, factor in state.items()}


def save_both(parts: Parts, folder: Path) -> None:
    """As diffusers' training scripts do."""
    found = {f"{name}_lora_layers": convert_state_dict_to_diffusers(state) for name, state in states(parts).items()}
    notes = {f"{name}_lora_adapter_metadata": part.peft_config["default"].to_dict() for name, part in parts.items()}
    StableDiffusionPipeline.save_lora_weights(folder, **found, **notes)


def save_unet(parts: Parts, folder: Path) -> None:
    """Without the name of the part, in the layers and in the notes."""
    parts["unet"].save_lora_adapter(folder)


def save_as_kohya(parts: Parts, folder: Path) -> None:
    """Alpha is an integer, the rank."""
    save_file(convert_state_dict_to_kohya(prefixed(parts)), folder / "kohya.safetensors")


def save_unnoted(parts: Parts, folder: Path) -> None:
    """As by diffusers before it had notes: alpha is not in the file."""
    save_file(prefixed(parts), folder / "unnoted.safetensors")


def save_weights(parts: Parts, folder: Path) -> None:
    """By the names in the models themselves, with the name of the adapter."""
    weights = {key: weight for part in parts.values() for key, weight in part.state_dict().items() if "lora_" in key}
    save_file(weights, folder / "weights.safetensors")


def changed(part: Any) -> dict[str, Any]:
    """The layers that peft changes."""
    return {key: layer for key, layer in part.named_modules() if hasattr(layer, "get_delta_weight")}


def fitted(model: Model, path: Path) -> dict[str, dict[str, lora_file.Pair]]:
    return dict(zip(TARGETS, lora_file.fit(lora_file.load_lora(path), *plain(model).values()), strict=True))


WRITERS = [
    (save_both, ALPHA, ("unet", "text_encoder")),
    (save_unet, ALPHA, ("unet",)),
    (save_as_kohya, RANK, ("unet", "text_encoder")),
    (save_unnoted, RANK, ("unet", "text_encoder")),
    (save_weights, RANK, ("unet", "text_encoder")),
]


@pytest.mark.parametrize(("save", "alpha", "written"), WRITERS)
def test_each_layer_changes_as_in_peft(
    model: Model, adapted: Parts, tmp_path: Path, save: Callable[[Parts, Path], None], alpha: int, written: Any
) -> None:
    save(adapted, tmp_path)
    [path] = tmp_path.glob("*.safetensors")
    for name, pairs in fitted(model, path).items():
        layers = changed(adapted[name])
        assert pairs.keys() == (layers.keys() if name in written else set())
        for key, pair in pairs.items():
            theirs = layers[key].get_delta_weight("default").detach() * alpha / ALPHA
            ours = (pair.up.flatten(1) @ pair.down.flatten(1)).view_as(theirs) * pair.alpha / pair.rank
            assert difference(ours, theirs) < 1e-6


def test_a_model_with_the_file_is_the_one_that_was_written(model: Model, adapted: Parts, tmp_path: Path) -> None:
    save_both(adapted, tmp_path)
    [path] = tmp_path.glob("*.safetensors")
    found = lora.apply_lora(model, path, 1)
    inputs = (torch.randn(1, 4, 16, 16), torch.tensor([300]), torch.randn(1, 77, model.encoder.config.hidden_size))
    tokens = torch.randint(100, (1, 77))
    with torch.no_grad():
        assert difference(found.pipeline.unet(*inputs).sample, adapted["unet"](*inputs).sample) < 1e-5
        ours, theirs = (part(tokens).last_hidden_state for part in (found.encoder.text_model, adapted["text_encoder"]))
    assert difference(ours, theirs) < 1e-5
    assert difference(ours, model.encoder.text_model(tokens).last_hidden_state) > 1e-2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
@pytest.mark.parametrize("part", TARGETS)
def test_what_peft_saves_of_its_model_is_read(model: Model, tmp_path: Path, part: str) -> None:
    """Peft notes alpha in another file."""
    whole = peft.get_peft_model(copy.deepcopy(plain(model)[part]), config(part))
    whole.save_pretrained(tmp_path)
    found = fitted(model, tmp_path / "adapter_model.safetensors")
    assert found.pop(part).keys() == changed(whole.base_model.model).keys() != set()
    assert list(found.values()) == [{}]
