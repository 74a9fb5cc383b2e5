"""The drawings: emoji of seven artists, from npm packages with permissive licences, and the words for them.

Packages are pinned and checked against npm's own sha512 before they are opened. What is kept goes to
WORK/emoji.json: for each emoji its names and one SVG per artist.
"""

import base64
import hashlib
import io
import json
import lzma
import re
import tarfile
import urllib.request
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from .settings import WORK

__all__ = ["ARTISTS", "Emoji", "fetch", "read"]

PATH = WORK / "emoji.json.xz"
REGISTRY = "https://registry.npmjs.org"
WORDS = (
    "emojibase-data-17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
# Of @iconify-json: name, version, sha512.
ARTISTS = {
    "noto": ("1.2.9", "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw=="),
    "noto-v1": ("1.2.5", "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA=="),
    "fluent-emoji": (
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    ),
    "fluent-emoji-flat": (
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "fluent-emoji-high-contrast": (
        "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    ),
    "fxemoji": ("1.2.2", "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ=="),
    "twemoji": ("1.2.5", "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw=="),
}
# Common names in place of Unicode's.
COMMON = {
    "automobile": "car",
    "deciduous tree": "tree",
    "mobile phone": "phone",
    "blossom": "flower",
    "optical disk": "disc",
}
GROUPS = (0, 1, 3, 4, 5, 6, 7)  # of emojibase: no symbols, no flags, no components
CLOCKS = re.compile(r"(o’clock|-thirty)$")
# Variants of a person by gender, direction or hair, of which one is enough.
VARIANTS = re.compile(r"^(man|woman|men|women|Mx|Mrs\.) |: |breast-feeding|^kiss$|middle finger")


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One subject. svgs: by artist, those that drew it."""

    label: str
    group: int
    tags: tuple[str, ...]
    svgs: dict[str, str]


def fetch() -> list[Emoji]:
    """Download and check all packages, and write WORK/emoji.json.xz. Raises ValueError for a wrong digest."""
    words = _read_json(_download(WORDS[0], f"{REGISTRY}/emojibase-data/-/{WORDS[0]}.tgz", WORDS[1]), "en/data.json")
    icons = {}
    for artist, (version, digest) in tqdm(ARTISTS.items(), desc="Fetching", unit=" artists"):
        url = f"{REGISTRY}/@iconify-json/{artist}/-/{artist}-{version}.tgz"
        icons[artist] = _svgs(_read_json(_download(f"{artist}-{version}", url, digest), "icons.json"))
    emoji = [
        {
            "label": word["label"],
            "group": word["group"],
            "tags": word.get("tags", []),
            "svgs": {
                artist: svgs[_key(word["label"])] for artist, svgs in icons.items() if _key(word["label"]) in svgs
            },
        }
        for word in sorted(words, key=lambda word: word.get("order", 0))
        if _is_wanted(word)
    ]
    WORK.mkdir(parents=True, exist_ok=True)
    PATH.write_bytes(lzma.compress(json.dumps(emoji).encode()))
    return read()


def read() -> list[Emoji]:
    """What `fetch` wrote, in the order of Unicode; emoji that fewer than three artists drew are left out."""
    entries = json.loads(lzma.decompress(PATH.read_bytes()))
    return [
        Emoji(
            label=COMMON.get(entry["label"], entry["label"]),
            group=entry["group"],
            tags=tuple(entry["tags"]),
            svgs=entry["svgs"],
        )
        for entry in entries
        if len(entry["svgs"]) >= 3
    ]


def _is_wanted(word: dict[str, Any]) -> bool:
    label = word["label"]
    return word.get("group") in GROUPS and not CLOCKS.search(label) and not VARIANTS.search(label)


def _download(name: str, url: str, digest: str) -> bytes:
    path = WORK / f"{name}.tgz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url) as response:
            path.write_bytes(response.read())
    data = path.read_bytes()
    found = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != digest:
        path.unlink()
        raise ValueError(f"{url} has the sha512 {found}, and {digest} was expected; it was discarded")
    return data


def _read_json(package: bytes, path: str) -> Any:
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        file = archive.extractfile(f"package/{path}")
        assert file is not None
        return json.load(file)


def _svgs(icons: dict[str, Any]) -> dict[str, str]:
    """Complete SVGs, by `_key` of the icon's name."""
    width, height = icons.get("width", 16), icons.get("height", 16)
    return {
        _key(name): (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {icon.get("width", width)} {icon.get("height", height)}">{icon["body"]}</svg>'
        )
        for name, icon in icons["icons"].items()
    }


def _key(name: str) -> str:
    """Names differ in case, dashes and accents only: "T-Rex", "t-rex", "trex"."""
    return re.sub("[^a-z0-9]", "", name.lower())
