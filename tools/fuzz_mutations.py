"""Mutations that know the form of a file: JSON, text, XML, zip, protobuf, safetensors, packages.

Each takes a valid file and a random generator and returns a file that is a little wrong. Plain
mutations of bytes mostly end in the outermost parser; these reach what lies behind it.
"""

from __future__ import annotations

import copy
import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["MUTATIONS", "joined", "of_bytes", "of_package", "sections", "with_sections"]

Rng = np.random.Generator
_HEAD, _ENTRY = struct.Struct("<5sBH"), struct.Struct("<HHIII")
# Values that have broken a reader: wrong types, ranges, depth, and names that are more than names.
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 1 << 31, 1 << 63, -(1 << 63), 10**400, 0.5, -0.5, 1e308,
    1e-320, "", "x", "0", "nan", "\x00", "\x1b[2J", "\n", "\ud800", "../../x", "/etc/x", "a" * 5000,
    [], [[]], {}, {"x": 1}, [0, 0, 0], [1e400], "NaN",
]  # fmt: skip
_NUMBERS = (
    "0", "-1", "1", "2000000000", "99999999999", "1e308", "1e400", "-1e400", "nan", "inf", "0.5",
    "1e-320", "1_0", "0x10", "", "1,2", "٣",
)  # fmt: skip
_WORDS = ("\x00", "\x1b[2J", "../../x", "/etc/passwd", "a" * 300, "\u202e", "é", "\ufeff", " ")


def of_bytes(data: bytes, rng: Rng) -> bytes:
    """Flip bits, set bytes, cut, double or insert parts."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not out:
            break
        at, kind, length = int(rng.integers(len(out))), rng.integers(6), int(rng.integers(1, 9))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            out[at : at + length] = rng.bytes(length)
        else:
            del out[at:]
    return bytes(out)


def of_json(data: bytes, rng: Rng) -> bytes:
    """Replace, drop, double or nest a value somewhere in the document."""
    if rng.random() < 0.1:
        return of_bytes(data, rng)
    try:
        value = json.loads(data)
    except ValueError:
        return of_text(data, rng)
    return _changed_json(value, rng)


def _changed_json(value: Any, rng: Rng) -> bytes:
    holder = [value]
    for _ in range(rng.integers(1, 3)):
        parent, key = _place(holder, rng)
        kind = rng.integers(10)
        if kind == 0 and isinstance(parent, dict):
            del parent[key]
        elif kind == 1 and isinstance(parent, list) and parent is not holder:
            parent.append(parent[key])
        elif kind == 2 and isinstance(parent, dict):
            parent[str(rng.choice(_WORDS)) or "x"] = parent.pop(key)
        elif kind == 3 and isinstance(parent[key], (int, float)) and abs(parent[key]) < 1e300:
            parent[key] = parent[key] * float(rng.choice([-1, 1e6, 1e-6, 0.5, 1.5]))
        elif kind == 4 and isinstance(parent[key], str):
            parent[key] += str(rng.choice(_WORDS))
        else:
            parent[key] = copy.deepcopy(_VALUES[int(rng.integers(len(_VALUES)))])
    text = json.dumps(holder[0])
    if rng.random() < 0.02:
        text = text.replace("{", "[" * 3000 + "{", 1)
    if rng.random() < 0.05:
        text = text.replace("0", "NaN", 1)
    return text.encode()


def _place(holder: Any, rng: Rng) -> tuple[Any, Any]:
    """Somewhere in the document: what holds a value, and under which key."""
    parent, key = holder, 0
    while rng.random() < 0.85:
        value = parent[key]
        if isinstance(value, dict) and value:
            parent, key = value, list(value)[int(rng.integers(len(value)))]
        elif isinstance(value, list) and value:
            parent, key = value, int(rng.integers(len(value)))
        else:
            break
    return parent, key


def of_jsonl(data: bytes, rng: Rng) -> bytes:
    """Change one line as JSON."""
    lines = data.splitlines()
    at = int(rng.integers(len(lines)))
    lines[at] = of_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def of_text(data: bytes, rng: Rng) -> bytes:
    """Replace a number or word, drop or double a line; cfg, toml, labels, names, xml, yaml."""
    if rng.random() < 0.15:
        return of_bytes(data, rng)
    lines = data.decode(errors="surrogateescape").split("\n")
    for _ in range(rng.integers(1, 3)):
        at = int(rng.integers(len(lines)))
        kind = rng.integers(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[at])
        elif kind == 2:
            lines[at] += str(rng.choice(_WORDS))
        else:
            lines[at] = _with_other_word(lines[at], rng)
        if not lines:
            lines = [""]
    return "\n".join(lines).encode(errors="surrogateescape")


def _with_other_word(line: str, rng: Rng) -> str:
    for cut in ("=", ",", " ", ">", "<", ":"):
        words = line.split(cut)
        if len(words) > 1 and rng.random() < 0.6:
            at = int(rng.integers(len(words)))
            words[at] = str(rng.choice(_NUMBERS if rng.random() < 0.8 else _WORDS))
            return cut.join(words)
    return str(rng.choice(_NUMBERS))


def of_zip(data: bytes, rng: Rng) -> bytes:
    """Change one entry of an archive, its name, its way of packing, or a NumPy header."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = archive.namelist()
        chosen = names[int(rng.integers(len(names)))]
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
            for name in names:
                content = archive.read(name)
                if name == chosen:
                    kind = rng.integers(5)
                    if kind == 0:
                        continue
                    if kind == 1:
                        name += str(rng.choice(_WORDS))
                    elif kind == 2:
                        made.writestr(name, content)
                    else:
                        content = _npy(content, rng)
                made.writestr(name, content)
    return out.getvalue()


def _npy(content: bytes, rng: Rng) -> bytes:
    header = content[: content.find(b"\n") + 1]
    for old, new in ((b"(", b"(99999,"), (b"<f4", b"|O"), (b"<f4", b"<f8"), (b"False", b"True")):
        if rng.random() < 0.3:
            header = header.replace(old, new, 1)
    body = content[content.find(b"\n") + 1 :]
    if rng.random() < 0.3 and len(body) >= 4:
        body = struct.pack("<f", float(rng.choice([np.nan, np.inf, -1e38]))) + body[4:]
    return (header + body) if rng.random() < 0.7 else of_bytes(content, rng)


def of_onnx(data: bytes, rng: Rng) -> bytes:
    """Change the graph, a tensor, a shape or the manifest of an ONNX file."""
    import onnx

    if rng.random() < 0.15:
        return of_bytes(data, rng)
    model = onnx.load_model_from_string(data)
    if rng.random() < 0.4:
        for entry in model.metadata_props:
            if entry.key == "edge.manifest":
                changed = _changed_json(json.loads(entry.value), rng)
                entry.value = changed.decode(errors="replace")
        return bytes(model.SerializeToString())
    graph = model.graph
    node = graph.node[int(rng.integers(len(graph.node)))]
    tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
    value = [*graph.input, *graph.output][int(rng.integers(len(graph.input) + len(graph.output)))]
    kind = rng.integers(12)
    if kind == 0 and node.input:
        node.input[int(rng.integers(len(node.input)))] = str(
            rng.choice(["", "nothing", node.output[0], graph.node[-1].output[0]])
        )
    elif kind == 1:
        node.op_type = str(rng.choice(["Relu", "Conv", "Nonsense", "Loop", "DequantizeLinear"]))
    elif kind == 2:
        graph.node.remove(node)
    elif kind == 3:
        graph.node.add().CopyFrom(node)
    elif kind == 4 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = int(
            rng.choice([0, 1, 3, 1 << 20, 1 << 40, -1])
        )
    elif kind == 5:
        tensor.data_type = int(rng.choice([0, 2, 3, 7, 8, 10, 11, 99]))
    elif kind == 6:
        tensor.raw_data = of_bytes(tensor.raw_data, rng)
    elif kind == 7:
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", str(rng.choice(["../x", "/etc/passwd", "a.bin"]))
    elif kind == 8 and value.type.tensor_type.shape.dim:
        dims = value.type.tensor_type.shape.dim
        dims[int(rng.integers(len(dims)))].dim_value = int(rng.choice([0, 7, 1 << 30, 1 << 60, -5]))
    elif kind == 9 and node.attribute:
        attribute = node.attribute[int(rng.integers(len(node.attribute)))]
        if attribute.ints:
            attribute.ints[0] = int(rng.choice([0, -1, 1 << 20, 1 << 62]))
        else:
            attribute.i = int(rng.choice([0, -1, 1 << 20]))
    elif kind == 10 and model.opset_import:
        model.opset_import[0].version = int(rng.choice([0, 1, 7, 99, 1 << 40]))
    elif len(tensor.raw_data) >= 4:
        bad = struct.pack("<f", float(rng.choice([np.nan, np.inf, 1e38])))
        tensor.raw_data = bad + tensor.raw_data[4:]
    return bytes(model.SerializeToString())


def of_safetensors(data: bytes, rng: Rng) -> bytes:
    """Change the header, the metadata inside it, or a value."""
    if rng.random() < 0.15:
        return of_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    metadata, kind = header.get("__metadata__", {}), rng.integers(5)
    if kind == 0 and len(body) >= 4:
        at = 4 * int(rng.integers(len(body) // 4))
        body[at : at + 4] = struct.pack("<f", float(rng.choice([np.nan, np.inf, -1e38])))
    elif kind == 1 and metadata:
        key = list(metadata)[int(rng.integers(len(metadata)))]
        text = metadata[key].encode()
        as_json = text[:1] in (b"{", b"[") and rng.random() < 0.9
        metadata[key] = (of_json if as_json else of_text)(text, rng).decode(errors="replace")
    elif kind == 2 and metadata:
        del metadata[list(metadata)[int(rng.integers(len(metadata)))]]
    else:
        name = [key for key in header if key != "__metadata__"]
        chosen = header[name[int(rng.integers(len(name)))]]
        if kind == 3 and chosen["shape"]:
            chosen["shape"][0] = int(rng.choice([0, 1, 1 << 40]))
        elif kind == 4:
            chosen["dtype"] = str(rng.choice(["F16", "I64", "F64", "X"]))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def sections(data: bytes) -> list[tuple[list[int], bytes]]:
    """Kind, coding, stored, decoded, crc and the bytes of each section of a package."""
    count = _HEAD.unpack_from(data)[2]
    at, found = _HEAD.size + count * _ENTRY.size + 4, []
    for number in range(count):
        entry = list(_ENTRY.unpack_from(data, _HEAD.size + number * _ENTRY.size))
        found.append((entry, data[at : at + entry[2]]))
        at += entry[2]
    return found


def joined(parts: list[tuple[list[int], bytes]]) -> bytes:
    """A package of these sections whose lengths and checksums are right."""
    head = _HEAD.pack(b"EDGEZ", 2, len(parts))
    for (kind, coding, _, decoded, _), stored in parts:
        head += _ENTRY.pack(kind, coding, len(stored), decoded, zlib.crc32(stored))
    return head + struct.pack("<I", zlib.crc32(head)) + b"".join(stored for _, stored in parts)


def with_sections(data: bytes, replaced: dict[int, bytes]) -> bytes:
    """The package with the stored bytes of some kinds of section replaced."""
    return joined([(entry, replaced.get(entry[0], stored)) for entry, stored in sections(data)])


def of_package(data: bytes, rng: Rng) -> bytes:
    """Change one section and put the checksums right again, so that decoders are reached."""
    if rng.random() < 0.2:
        return of_bytes(data, rng)
    parts = sections(data)
    number = int(rng.integers(len(parts)))
    entry, stored = parts[number]
    choice = rng.random()
    if choice < 0.1:
        entry[1] = int(rng.integers(6))
    elif choice < 0.2:
        entry[3] = int(rng.integers(1 << int(rng.integers(1, 32))))
    elif entry[0] == 1:
        text = zlib.decompress(stored, -15)
        text = (of_json if choice < 0.8 else of_bytes)(text, rng)
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        stored, entry[3] = packer.compress(text) + packer.flush(), len(text)
    else:
        stored = of_bytes(stored, rng)
    parts[number] = (entry, stored)
    return joined(parts)


def of_image(data: bytes, rng: Rng) -> bytes:
    """Change an image's header or body; sizes of JPEG, PNG and BMP get absurd values."""
    out = bytearray(data)
    frame = data.find(b"\xff\xc0")
    spots = {b"\xff\xd8": frame + 5 if frame > 0 else 0, b"\x89P": 16, b"BM": 18}
    at = spots.get(bytes(data[:2]), 0)
    if at and rng.random() < 0.4:
        size = 2 if data[:2] == b"\xff\xd8" else 4
        out[at : at + size] = rng.bytes(size)
        if data[:2] == b"\x89P":  # its checksum, so that the size is believed
            out[29:33] = struct.pack(">I", zlib.crc32(bytes(out[12:29])))
        return bytes(out)
    return of_bytes(data, rng)


MUTATIONS: dict[str, Callable[[bytes, Rng], bytes]] = {
    "bytes": of_bytes,
    "image": of_image,
    "json": of_json,
    "jsonl": of_jsonl,
    "onnx": of_onnx,
    "package": of_package,
    "safetensors": of_safetensors,
    "text": of_text,
    "zip": of_zip,
}
