"""The GPU's decoder of foreign heads equals the CPU's, for every family, on the host build.

`tests/test_ops_gpu.py` says what the host build is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.artifact import read_manifest
from edge.runtime import ops_cpu
from edge.runtime.ops_gpu import Decoder, Kernels, Suppressor
from edge.runtime.session import open_session
from edge.spec import ModelSpec
from export.foreign.importing import import_model
from tests.support.foreign_families import FAMILIES, Family, write_graph
from tests.test_ops_gpu import same_detections

pytest_plugins = ("tests.support.fake_driver",)


def read(family: Family, folder: Path) -> tuple[ModelSpec, list[Any]]:
    """The spec of a family's graph, and its outputs."""
    source = write_graph(family, folder / "net.onnx")
    names = folder / "net.names"
    names.write_text("\n".join(f"class {number}" for number in range(max(1, family.classes))))
    found = import_model(source, names=names if family.classes else None, output=folder)
    session = open_session(found.file.read_bytes(), found.file, threads=1)
    (given,) = session.get_inputs()
    raw = session.run(None, {given.name: np.zeros(given.shape, np.float32)})
    return read_manifest(found.file).spec, [np.asarray(each, np.float32) for each in raw]


@pytest.mark.parametrize("name", FAMILIES)
def test_decode_equals_the_cpu_for_every_family(
    kernels: Kernels, name: str, tmp_path: Path
) -> None:
    spec, outputs = read(FAMILIES[name](), tmp_path)
    rng, total = np.random.default_rng(8), 0
    for multi_label in (False, True):
        buffers = [kernels.device.allocate(each.shape, np.float32) for each in outputs]
        ours = Decoder(spec, kernels, raw=buffers, multi_label=multi_label)
        theirs = ops_cpu.Decoder(spec, multi_label=multi_label)
        for case in range(6):
            raw = [each.copy() for each in outputs]
            if case > 1:  # other numbers of the same kind, wherever they lie
                for array in raw:
                    array *= rng.uniform(0.7, 1.05, array.shape).astype(np.float32)
            score = (0.01, 0.3, 0.0, 0.05, 0.5, 1.0)[case]
            with np.errstate(all="ignore"):
                wanted = theirs(raw, score)
            same_detections(ours(raw, score), wanted, score)
            total += len(wanted)
        ours.close()
        for buffer in buffers:
            buffer.close()
    assert total > 10


@pytest.mark.parametrize("name", ["yolox raw", "v10 and 26 rows", "yolov8 raw maps"])
def test_suppression_equals_the_cpu(kernels: Kernels, name: str, tmp_path: Path) -> None:
    spec, raw = read(FAMILIES[name](), tmp_path)
    buffers = [kernels.device.allocate(each.shape, np.float32) for each in raw]
    ours, theirs = Decoder(spec, kernels, raw=buffers), ops_cpu.Decoder(spec)
    suppressor = Suppressor(kernels, 100)
    for array, buffer in zip(raw, buffers, strict=True):
        kernels.device.copy_to_device_async(buffer, np.ascontiguousarray(array), kernels.stream)
    found = ours.enqueue(0.001)
    suppressor.enqueue(found, 2.0 if ours.suppressed else 0.2, ours.exclusive)
    kernels.device.synchronize(kernels.stream)
    wanted = theirs.suppress(theirs(raw, 0.001), 0.2, 100)
    same_detections(suppressor.collect(), wanted, 0.001)
    assert len(wanted) >= 5
    suppressor.close()
    ours.close()
    for buffer in buffers:
        buffer.close()
