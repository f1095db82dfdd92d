"""Print the predictions of docs/estimate.md: our own networks on every board, as Markdown."""

from __future__ import annotations

import datetime

from edge.built_in import BUILT_IN
from export.estimate.estimate import EstimateOptions, estimate, read_network
from export.estimate.facts import read_facts

NETWORKS = (
    *BUILT_IN,
    "tiny-yolo-scenes-half",
    "squeezedet-scenes-half",
    "squeezedet-photo",
    "yolov2-tiny-voc",
    "yolov3-tiny",
    "yolov4-tiny",
    "squeezedet-kitti",
    "yolov3",
)
PRECISIONS = ("fp16", "int8")


def main() -> None:
    boards = read_facts().boards
    print(f"Milliseconds in FP16 / INT8, predicted on {datetime.date.today().isoformat()}.\n")
    print("| network | GFLOP | 80 % within a factor of | " + " | ".join(boards) + " |")
    print("|---|---|---|" + "---|" * len(boards))
    for name in NETWORKS:
        network = read_network(name)
        found = estimate(network, boards, EstimateOptions(PRECISIONS))
        pairs = zip(found[::2], found[1::2], strict=True)
        cells = [f"{half.likely_ms:.2f} / {low.likely_ms:.2f}" for half, low in pairs]
        factors = sorted(one.high_ms / one.likely_ms for one in found)
        print(
            f"| {name} | {network.operations / 1e9:.2f} | {factors[0]:.2f} to {factors[-1]:.2f} | "
            + " | ".join(cells)
            + " |"
        )


if __name__ == "__main__":
    main()
