"""A byte-pair encoding of its own, in the two files of CLIP's tokenizer."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from .settings import TOKENS, VOCABULARY

__all__ = ["END", "START", "train"]

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"  # of the last letter of a word
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # as CLIP splits them


def train(captions: Iterable[str], folder: Path) -> None:
    """Learn merges from captions, and write `folder` as CLIPTokenizer reads it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + SUFFIX for letter in letters]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=alphabet,  # in a fixed order: between equally frequent pairs, the numbers decide
        end_of_word_suffix=SUFFIX,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    vocabulary = [*alphabet, *(first + second for first, second in merges), START, END]
    assert len(set(vocabulary)) == VOCABULARY
    _write(folder, vocabulary, [f"{first} {second}" for first, second in merges])


def _write(folder: Path, vocabulary: list[str], merges: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    names = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True}
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings, indent=2) + "\n", encoding="utf-8")
