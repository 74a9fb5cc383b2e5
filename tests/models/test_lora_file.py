"""LoRA files as an enemy may have written them, and such as are for something else."""

import json
import pickle
import struct
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from aesthetic.errors import CheckpointError
from aesthetic.models import file_kind, lora, lora_file
from aesthetic.models.loading import Model
from aesthetic.request import Request
from aesthetic.service import Service
from tests import lora as files
from tests import memory

DOWN = "lora_unet_conv_in.lora_down.weight"
UP = "lora_unet_conv_in.lora_up.weight"
ALPHA = "lora_unet_conv_in.alpha"
WHOLE = {DOWN: torch.ones(2, 4, 3, 3), UP: torch.ones(8, 2, 1, 1), ALPHA: torch.tensor(2.0)}


def complaint(path: Path, model: Model | None = None) -> str:
    """What is said of a file, by the reader or, if there is a model, when it is fitted to that."""

    def look() -> None:
        found = lora_file.load_lora(path)
        if model is not None:
            lora_file.fit(found, model.pipeline.unet, model.encoder.text_model)

    with pytest.raises(CheckpointError) as error:
        look()
    message = str(error.value)
    assert message.startswith("lora: ")
    assert len(message) < 800
    assert message.isprintable()
    return message


def saved(path: Path, tensors: dict[str, Tensor], notes: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata=notes)
    return path


def header(content: object, data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_whole_one_is_read(tmp_path: Path, model: Model) -> None:
    found = lora_file.load_lora(saved(tmp_path / "x", WHOLE))
    [(name, pair)] = found.pairs.items()
    assert (name, pair.rank, pair.alpha) == ("lora_unet_conv_in", 2, 2.0)
    for_unet, for_text = lora_file.fit(found, model.pipeline.unet, model.encoder.text_model)
    assert list(for_unet) == ["conv_in"]
    assert for_text == {}


@pytest.mark.parametrize("sign", sorted(file_kind.SIGNS.keys() - {"lora"}))
def test_what_is_something_else_says_what(sign: str, tmp_path: Path) -> None:
    is_weak = list(file_kind.SIGNS).index(sign) > list(file_kind.SIGNS).index("lora")  # LoRAs may have it, too
    tensors = {f"some.{sign}.weight": torch.ones(1)} if is_weak else {f"lora_unet_{sign}.w": torch.ones(1), **WHOLE}
    path = saved(tmp_path / "x", tensors)
    assert f"the file is {file_kind.SIGNS[sign]}; a LoRA in .safetensors was expected" in complaint(path)


REAL = {  # names as they are in files that people have
    "a LoHa": "lora_unet_down_blocks_0_attentions_0_proj_in.hada_w1_a",
    "a LoKr": "lora_te_text_model_encoder_layers_0_mlp_fc1.lokr_w2",
    "a DoRA": "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k.dora_scale",
    "a LoRA for Stable Diffusion XL": "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "for Flux": "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight",
    "a whole model": "model.diffusion_model.input_blocks.0.0.weight",
    "a LoRA of cloneofsimo's lora": "text_encoder:0:up",
    "a textual inversion;": "emb_params",
    "a textual inversion for Stable Diffusion XL": "clip_g",
    "a LoRA with a textual inversion in it": "bundle_emb.<cat>.clip_l",
    "a LoRA in OMI's format": "unet.input_blocks.1.1.proj_in.lora_down.weight",
    "a whole model with a LoRA in it": "mid_block.attentions.0.proj_in.base_layer.weight",
    "a LyCORIS with changes of normalization layers": "lora_unet_down_blocks_0_resnets_0_norm1.w_norm",
}


@pytest.mark.parametrize("kind", REAL)
def test_what_others_have_is_known(kind: str, tmp_path: Path) -> None:
    assert f"the file is {kind}" in complaint(saved(tmp_path / "x", {REAL[kind]: torch.ones(1)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_unet_conv_in.weight": torch.ones(1)}, "holds 'lora_unet_conv_in.weight', which is not part of a LoRA"),
        ({"\x1b[31m": torch.ones(1)}, r"holds '\x1b[31m', which is not part"),
        ({"lora_unet_x.lora_up.weight": torch.ones(1)}, "only one of the two factors that change 'lora_unet_x'"),
        ({"lora_unet_x.alpha": torch.ones(1)}, "only one of the two factors that change 'lora_unet_x'"),
        ({"lora_unet_conv_in.lora_B.weight": torch.ones(1)}, f"in.lora_B.weight' and '{UP}': one layer, twice"),
        ({"lora_unet_conv_in.lora_B.two.weight": torch.ones(1)}, "conv_in.lora_B.two.weight' and"),
        ({UP: torch.ones(8, 3, 1, 1)}, "[8, 3, 1, 1]: not a LoRA"),
        ({UP: torch.ones(8)}, "[8]: not a LoRA"),
        ({UP: torch.ones(8, 2, 1)}, "[8, 2, 1]: not a LoRA"),
        ({DOWN: torch.ones(0, 4, 3, 3), UP: torch.ones(8, 0, 1, 1)}, "not a LoRA"),
        ({ALPHA: torch.ones(2)}, "not a LoRA"),
        ({DOWN: torch.ones(513, 4, 3, 3), UP: torch.ones(8, 513, 1, 1)}, "of rank 513, and 512 is the most"),
        ({UP: torch.ones(8, 2, 1, 1, dtype=torch.int8)}, "as I8; F16, BF16, F32, F64 were expected"),
        ({UP: torch.ones(8, 2, 1, 1).to(torch.float8_e4m3fn)}, "as F8_E4M3; F16"),
        ({UP: torch.full((8, 2, 1, 1), float("nan"))}, f"values in '{UP}' that are not finite"),
        ({DOWN: torch.full((2, 4, 3, 3), float("-inf"))}, f"values in '{DOWN}' that are not finite"),
        ({DOWN: torch.full((2, 4, 3, 3), 1e5)}, "or not in fp16's range"),
        ({DOWN: torch.full((2, 4, 3, 3), 1e300, dtype=torch.float64)}, "or not in fp16's range"),
        ({ALPHA: torch.tensor(float("inf"))}, f"values in '{ALPHA}' that are not finite"),
        ({ALPHA: torch.tensor(float("nan"))}, f"values in '{ALPHA}' that are not finite"),
        ({ALPHA: torch.tensor(2**62)}, f"values in '{ALPHA}' that are not finite, or not in fp16's range"),
        ({ALPHA: torch.tensor(-(2**63))}, "or not in fp16's range"),
        ({ALPHA: torch.tensor(True)}, f"holds '{ALPHA}' as BOOL; F16, BF16, F32, F64, U8, I8, I16, I32, I64 were"),
        ({ALPHA: torch.ones(2, dtype=torch.int64)}, "not a LoRA"),
        ({ALPHA: torch.tensor(0)}, "changes nothing"),
        ({DOWN: torch.ones(2, 4, 3, 3, dtype=torch.int64)}, "as I64; F16, BF16, F32, F64 were expected"),
        ({UP: torch.zeros(8, 2, 1, 1)}, "changes nothing"),
        ({ALPHA: torch.tensor(0.0)}, "changes nothing"),
    ],
)
def test_other_content_is_refused(changes: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    assert message in complaint(saved(tmp_path / "x", WHOLE | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_unet_nothing.lora_down.weight": torch.ones(2, 4), "lora_unet_nothing.lora_up.weight": torch.ones(4, 2)},
         "a layer 'lora_unet_nothing', which the model doesn't have: it is for another kind of model"),
        ({"unet.conv_norm_out.lora_A.weight": torch.ones(2, 8), "unet.conv_norm_out.lora_B.weight": torch.ones(8, 2)},
         "which the model doesn't have"),
        ({"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3), "unet.conv_in.lora_B.weight": torch.ones(8, 2, 1, 1)},
         "one layer under two names, the second being 'unet.conv_in'"),
        ({UP: torch.ones(16, 2, 1, 1)}, "by [16, 2, 1, 1] · [2, 4, 3, 3], and the model's layer has the shape [8, 4, "),
        ({DOWN: torch.ones(2, 4, 1, 1)}, "it is for another model"),
        ({DOWN: torch.ones(2, 4)}, "it is for another model"),
    ],
)  # fmt: skip
def test_a_misfit_is_refused(model: Model, changes: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    assert message in complaint(saved(tmp_path / "x", WHOLE | changes), model)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bfloat16])
def test_alpha_may_be_of_any_type(dtype: torch.dtype, tmp_path: Path) -> None:
    """Scripts that write the rank there write an integer."""
    [pair] = lora_file.load_lora(saved(tmp_path / "x", WHOLE | {ALPHA: torch.tensor(3, dtype=dtype)})).pairs.values()
    assert (pair.alpha, type(pair.alpha)) == (3.0, float)


NAMES = [files.te1, files.peft, files.dotted, files.old, files.unnamed, files.unnamed_old, files.wrapped]


@pytest.mark.parametrize("names", NAMES)
def test_every_trainer_s_names_find_the_same_layers(model: Model, tmp_path: Path, names: Any) -> None:
    old = "to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"
    plain = files.without_alpha(files.changes(model))
    given_changes = {place: change for place, change in plain.items() if place[1].endswith(old)}
    modules = model.pipeline.unet, model.encoder.text_model
    found, expected = (
        lora_file.fit(
            lora_file.load_lora(files.write(tmp_path / layout.__name__, given_changes, names=layout)), *modules
        )
        for layout in (names, files.kohya)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() != set()
        for layer, pair in ours.items():
            assert torch.equal(pair.down, theirs[layer].down)
            assert torch.equal(pair.up, theirs[layer].up)
            assert pair.alpha == theirs[layer].alpha == pair.rank


@pytest.mark.parametrize("names", [files.kohya, files.te1, files.peft, files.old, files.unnamed, files.wrapped])
@pytest.mark.parametrize("width", [768, 1024, 1280, 2048, 640])
def test_a_lora_for_another_text_encoder_says_for_which(model: Model, tmp_path: Path, names: Any, width: int) -> None:
    for place in (
        ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"),
        ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
    ):
        change = files.changes(model)[place]
        wide = replace(change, down=torch.ones(len(change.down), width), alpha=None)
        message = complaint(files.write(tmp_path / "x", {place: wide}, names=names), model)
        kind = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 640: "another model"}
        assert (
            f"is for {kind.get(width, 'Stable Diffusion XL')}, whose text encoder is {width} wide, and this" in message
        )


def test_a_convolution_of_1_by_1_may_be_written_as_a_matrix(model: Model, tmp_path: Path) -> None:
    """And the other way round: models differ in what they have there, and files follow other models."""
    unet, places = model.pipeline.unet, ("proj_in", "transformer_blocks.0.ff.net.2")
    whole = {("unet", f"mid_block.attentions.0.{place}"): change for place in places
             for change in [files.changes(model)["unet", f"mid_block.attentions.0.{place}"]]}  # fmt: skip
    turned = {
        place: replace(
            change,
            down=change.down.flatten(1) if change.down.ndim == 4 else change.down[..., None, None],
            up=change.up.flatten(1) if change.up.ndim == 4 else change.up[..., None, None],
        )
        for place, change in whole.items()
    }
    found = []
    for name, given_changes in (("whole", whole), ("turned", turned)):
        read = lora_file.load_lora(files.write(tmp_path / name, given_changes))
        found.append(lora_file.fit(read, unet, model.encoder.text_model)[0])
    for layer in found[0]:
        assert torch.equal(found[0][layer].down, found[1][layer].down)
        assert torch.equal(found[0][layer].up, found[1][layer].up)


@pytest.mark.parametrize(
    "notes", ["[", "[" * 10**5, "3", '"text"', '{"unet.lora_alpha": "8"}', '{"unet.lora_alpha": 1e999}',
              '{"unet.lora_alpha": NaN}', '{"unet.lora_alpha": [1]}', '{"unet.lora_alpha": ' + "9" * 5000 + "}"]
)  # fmt: skip
def test_malformed_notes_are_refused(notes: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x", WHOLE, {"lora_adapter_metadata": notes})
    assert "the file's notes (lora_adapter_metadata) are not those" in complaint(path)


@pytest.mark.parametrize("name", lora_file.UNREAD)
def test_notes_that_ask_for_more_than_one_alpha_are_refused(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x", WHOLE, {"lora_adapter_metadata": json.dumps({f"unet.{name}": {"conv_in": 3}})})
    assert f"the file's notes ask for unet.{name}, which" in complaint(path)
    path = saved(tmp_path / "x", WHOLE, {"lora_adapter_metadata": json.dumps({name: True})})
    assert f"the file's notes ask for {name}, which" in complaint(path)


def test_other_notes_are_ignored(tmp_path: Path) -> None:
    notes = {"ss_network_alpha": "1", "r": "0", "lora_adapter_metadata": '{"unet.r": -1, "unet.target_modules": "x"}'}
    assert lora_file.load_lora(saved(tmp_path / "x", WHOLE, notes)).pairs["lora_unet_conv_in"].alpha == 2


TWO = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\x00" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 20) + b"{}",
        header([]),
        header({}),
        struct.pack("<Q", 9) + b'{"a": [}}',
        struct.pack("<Q", 10**5) + b"{" * 10**5,
        header({DOWN: TWO, UP: TWO}, b"0000"),
        header({DOWN: TWO}),
        header({DOWN: {**TWO, "shape": [2**62, 4]}}, b"0000"),
        header({DOWN: {**TWO, "dtype": "EVIL"}}, b"0000"),
        header({DOWN: {**TWO, "dtype": "\x1b[31m" + "x" * 10**5}}, b"0000"),
    ],
)
def test_damaged_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    complaint(tmp_path / "x")


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_a_file_with_a_few_other_bytes_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, place: int, data: bytes
) -> None:
    path = saved(tmp_path_factory.mktemp("x") / "x", WHOLE)
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + data + whole[place + len(data) :])
    try:
        lora_file.load_lora(path)
    except CheckpointError as error:
        assert str(error).startswith("lora: ")  # noqa: PT017


def test_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(lora_file.MAX_BYTES + 1)  # on the disk it is nothing
    assert "the file has 1.0 GB, and a LoRA has at most 1" in complaint(tmp_path / "x")
    with (tmp_path / "x").open("wb") as file:
        file.write(struct.pack("<Q", lora_file.MAX_HEADER + 1) + b"{")
        file.truncate(lora_file.MAX_BYTES)
    assert "the file's header has 17 MB, and a LoRA's at most 16" in complaint(tmp_path / "x")
    many = {f"lora_unet_{i}.alpha": torch.ones(1) for i in range(lora_file.MAX_TENSORS + 1)}
    assert "holds 4097 tensors" in complaint(saved(tmp_path / "x", many))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_weights_of_a_file_are_not_copied(tmp_path: Path, dtype: torch.dtype) -> None:
    down = torch.ones(lora_file.MAX_RANK, 10**5, dtype=dtype)
    path = saved(tmp_path / "x", {DOWN: down, UP: torch.ones(8, lora_file.MAX_RANK)})
    taken = memory.taken(path, "from aesthetic.models.lora_file import load_lora", "load_lora(path)")
    assert taken < 1.1 * path.stat().st_size + 10**7


def test_a_shape_of_many_sides_is_not_quoted_at_length(tmp_path: Path) -> None:
    whole, none = ({"dtype": "F32", "shape": [1] * 10**5, "data_offsets": at} for at in ([0, 4], [4, 8]))
    (tmp_path / "x").write_bytes(header({DOWN: whole, UP: none}, b"12345678"))
    assert "1, 1, ...]: not a LoRA" in complaint(tmp_path / "x")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    torch.save(WHOLE, tmp_path / "x.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(WHOLE, protocol=2))
    for name in ("x.pt", "old.pt"):
        message = complaint(tmp_path / name)
        assert "is a pickle" in message
        assert file_kind.CONVERT.format("lora.pt") in message


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ([torch.ones(8, 2), torch.ones(2, 8)], "a pickled list, perhaps a LoRA of cloneofsimo's lora"),
        ({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(1, 768)}}, "a textual inversion;"),
        ({"<cat>": torch.ones(768)}, "a textual inversion;"),
    ],
)
def test_pickles_that_can_t_be_converted_are_named(content: Any, kind: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    assert f"the file is {kind}" in complaint(tmp_path / "x.pt")


def test_a_zip_archive_is_not_called_a_pickle(tmp_path: Path) -> None:
    saved(tmp_path / "style.safetensors", WHOLE)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "style.safetensors", "style.safetensors")
    assert "the file is a zip archive: unpack it" in complaint(tmp_path / "x.zip")


@pytest.mark.parametrize(("name", "shape"), [("<cat>", (768,)), ("anything", (3, 768)), ("x", (2, 1024))])
def test_a_single_tensor_is_a_textual_inversion(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    message = complaint(saved(tmp_path / "x", {name: torch.ones(shape)}))
    assert f"holds one tensor {list(shape)}, as a textual inversion does; a LoRA in" in message


def test_a_lora_for_another_kind_of_model_is_called_that(model: Model, tmp_path: Path) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    factors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    message = complaint(saved(tmp_path / "x", factors), model)
    assert f"changes a layer '{name}', which the model doesn't have: it is for another kind of model" in message


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_length_that_looks_like_a_pickle_is_a_length(tmp_path: Path, start: bytes) -> None:
    saved(tmp_path / "x", WHOLE)
    data = (tmp_path / "x").read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    length = next(size for size in range(len(header), 2**17) if struct.pack("<Q", size).startswith(start))
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + header.ljust(length) + data[8 + len(header) :])
    assert lora_file.load_lora(tmp_path / "x").pairs.keys() == {"lora_unet_conv_in"}


def test_the_conversion_that_the_message_describes_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(WHOLE, tmp_path / "lora.pt")
    monkeypatch.chdir(tmp_path)
    program = complaint(tmp_path / "lora.pt").partition("in Python, ")[2]
    exec(program, {})  # noqa: S102
    assert load_file("model.safetensors").keys() == WHOLE.keys()
    assert lora_file.load_lora(Path("model.safetensors")).pairs.keys() == {"lora_unet_conv_in"}


def test_an_aesthetic_and_a_missing_file_are_named(tmp_path: Path) -> None:
    aesthetic = saved(tmp_path / "x", {"aesthetic": torch.ones(1, 24)})
    assert "is an aesthetic: give it as aesthetic_embedding_file" in complaint(aesthetic)
    assert "there is no file" in complaint(tmp_path / "nothing")


def test_a_bad_file_is_refused_before_any_model_work(
    service: Service, quick: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before images are encoded, which takes the model, too."""
    monkeypatch.setattr(Service, "_target", lambda *_: pytest.fail("the model worked"))
    monkeypatch.setattr(lora, "_merged", lambda *_: pytest.fail("the model worked"))
    for changes in ({ALPHA: torch.zeros(1)}, {UP: torch.ones(16, 2, 1, 1)}):
        for scale in (0, 1):
            with pytest.raises(CheckpointError, match="lora: the file changes"):
                service.draw(replace(quick, lora=saved(tmp_path / "x", WHOLE | changes), lora_scale=scale))
