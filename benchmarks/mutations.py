"""Damage for `fuzz.py`: random bytes, and changes that keep a file's structure so that they reach deeper code."""

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import safetensors.torch

from pocketdiff.tensors import fingerprint

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 64, 65, 127, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63)
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"), 10**30, 10**400, *NUMBERS,
    "", "0", "none", "mnist", "a\x00b", "\x1b[2J", "../..", "\ud800", "ß" * 300, [], {}, [[]], [{}], {"kind": []},
    {"kind": "none"}, {"": 0}, [1] * 300, json.loads("[" * 300 + "]" * 300),
)  # fmt: skip

Mutation = Callable[[Random, bytes], bytes]


def flip(rng: Random, content: bytes) -> bytes:
    """One to eight flipped bits."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: Random, content: bytes) -> bytes:
    """A run of random, equal or copied bytes in place of another run."""
    at, length = rng.randrange(len(content) + 1), rng.choice((1, 2, 4, 8, 64, 1000))
    start = rng.randrange(len(content) + 1)
    new = rng.choice((rng.randbytes(length), bytes([rng.choice((0, 255))]) * length, content[start : start + length]))
    return content[:at] + new + content[at + rng.choice((0, length)) :]


def truncate(rng: Random, content: bytes) -> bytes:
    """The start or the end of a file."""
    at = rng.choice((0, rng.randrange(min(64, len(content) + 1)), rng.randrange(len(content) + 1)))
    return rng.choice((content[:at], content[at:], content[: len(content) - at]))


def change_json(rng: Random, tree: Any) -> Any:
    """The same tree with another value, key or entry at one place."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.1:
        return rng.choice(VALUES)
    changed = dict(tree) if isinstance(tree, dict) else list(tree)
    key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    match rng.randrange(6):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, dict):
            changed[str(rng.choice(VALUES))] = changed.pop(key)
        case 2:
            changed[key] = rng.choice(list(tree.values() if isinstance(tree, dict) else tree))
        case _:
            changed[key] = change_json(rng, tree[key])
    return changed


def json_text(rng: Random, content: bytes) -> bytes:
    """A JSON file, or one of its lines, with one change."""
    lines = content.splitlines() if content.count(b"\n{") else [content]
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(change_json(rng, json.loads(lines[at])), ensure_ascii=rng.random() < 0.9).encode(
        errors="surrogatepass"
    )
    return b"\n".join(lines) + b"\n"


def tensors(rng: Random, content: bytes) -> bytes:
    """A model file or a checkpoint whose description was changed and signed again, or whose header was changed."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if rng.random() < 0.3:
        new = json.dumps(change_json(rng, header)).encode(errors="replace")
        return len(new).to_bytes(8, "little") + new + content[8 + size :]
    about = json.loads(header["__metadata__"]["pocketdiff"])
    about.pop("sha256")
    part = rng.choice(sorted(about.keys() & {"train", "data", "config", "checkpoint"}))
    about = {**about, part: change_json(rng, about[part])} if rng.random() < 0.9 else change_json(rng, about)
    held = safetensors.torch.load(content)
    if not isinstance(about, dict):
        about = {"format": about}
    if rng.random() < 0.1:
        name = rng.choice(sorted(held))
        held[name] = held[name].flatten() if rng.random() < 0.5 else held[name].double()
    signed = json.dumps({**about, "sha256": fingerprint(held, about)})
    return safetensors.torch.save(held, {"pocketdiff": signed})


def idx(rng: Random, content: bytes) -> bytes:
    """Another number in an IDX header."""
    at = 4 * rng.randrange(4 if content[3] == 3 else 2)
    return content[:at] + struct.pack(">I", rng.choice(NUMBERS) % 2**32) + content[at + 4 :]


def zipped(rng: Random, content: bytes) -> bytes:
    """An archive with one changed member, or with another number in its directory."""
    if rng.random() < 0.3:
        at = (
            content.rfind(b"PK\x01\x02", 0, rng.randrange(len(content)) + 1)
            if rng.random() < 0.7
            else len(content) - 22
        )
        at = max(at, 0) + rng.randrange(4, 46)
        return content[:at] + struct.pack("<I", rng.choice(NUMBERS) % 2**32) + content[at + 4 :]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members)) if rng.random() < 0.6 else 0
    name, member = members[at]
    members[at] = name, npy(rng, member) if name.endswith(".npy") and rng.random() < 0.6 else anywhere(rng, member)
    match rng.randrange(8):
        case 0:
            del members[at]
        case 1:
            members.append((name, member))
        case 2:
            members[at] = (rng.choice(members)[0], member)
    new = io.BytesIO()
    with zipfile.ZipFile(new, "w", rng.choice((0, 0, 8, 8, 12))) as archive:
        for key, value in members:
            archive.writestr(zipfile.ZipInfo(key), value, archive.compression)
    return new.getvalue()


def npy(rng: Random, content: bytes) -> bytes:
    """An array with another header."""
    shape = [rng.choice((*NUMBERS, 12, 16, -1)) for _ in range(rng.randrange(5))]
    descr = rng.choice(("|u1", "<i8", ">i8", "|O", "<U9", "|b1", "<f8", "<M8[s]", "|V0", [("a", "|u1")], 3))
    named = {"descr": descr, "fortran_order": rng.choice((True, False, None)), "shape": tuple(shape)}
    header = rng.choice((repr(named), repr(named)[:-3], "(" * rng.choice((9, 300)), repr(named).replace("1", "1L")))
    text = header.encode() + b"\n"
    body = content[10 + int.from_bytes(content[8:10], "little") :]
    return content[:6] + bytes([rng.choice((1, 1, 1, 2, 3, 9)), 0]) + len(text).to_bytes(2, "little") + text + body


def png(rng: Random, content: bytes) -> bytes:
    """A PNG file with a changed chunk and a valid checksum."""
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    number = rng.randrange(len(chunks)) if rng.random() < 0.5 else 0
    kind, body = chunks[number]
    if kind == b"IHDR" and rng.random() < 0.7:
        place = rng.choice((0, 4))
        body = body[:place] + struct.pack(">I", rng.choice(NUMBERS) % 2**32) + body[place + 4 :]
    else:
        body = anywhere(rng, body)
    chunks[number] = rng.choice((kind, kind, kind, b"IEND", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL")), body
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks)), (rng.choice((b"zTXt", b"eXIf")), zlib.compress(bytes(2**20))))
    parts = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return content[:8] + b"".join(parts)


def jpeg(rng: Random, content: bytes) -> bytes:
    """A JPEG file with another number in a segment's header."""
    markers = [at for at in range(len(content) - 1) if content[at] == 0xFF and content[at + 1] not in (0, 0xFF)]
    at = rng.choice(markers) + rng.randrange(1, 10)
    return content[:at] + struct.pack(">H", rng.choice(NUMBERS) % 2**16) + content[at + 2 :]


def anywhere(rng: Random, content: bytes) -> bytes:
    """Damage that knows no structure."""
    mutation: Mutation = rng.choice((flip, flip, overwrite, truncate))
    return mutation(rng, content)


STRUCTURED: dict[str, Mutation] = {
    ".safetensors": tensors, ".json": json_text, ".jsonl": json_text, ".npz": zipped, ".pth": zipped, ".png": png,
    ".jpg": jpeg,
}  # fmt: skip
"""By the ending of the file's name."""


def mutated(rng: Random, name: str, content: bytes, other: bytes) -> bytes:
    """A damaged file; ``other`` is a valid file that reads alike."""
    match rng.randrange(10):
        case 0:
            return content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]
        case 1 | 2 | 3 if not name.endswith((".json", ".jsonl")):
            return anywhere(rng, content)
        case 1:
            return anywhere(rng, content)
    change = next((change for ending, change in STRUCTURED.items() if name.endswith(ending)), idx)
    if name.endswith(".gz"):
        return gzip.compress(rng.choice((idx, anywhere))(rng, gzip.decompress(content)), 1, mtime=0)
    return change(rng, content)
