"""Ask a Triton server what it sees in pictures.

pip install "tritonclient[http]" opencv-python-headless
python client.py photo.jpg [--url localhost:8000] [--model NAME]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import tritonclient.http as triton

__all__ = ["main"]

MODEL = "@MODEL@"
LABELS = Path(__file__).with_name(MODEL) / "labels.txt"


def main() -> None:
    """Print one line of JSON for each picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--url", default="localhost:8000")
    parser.add_argument("--model", default=MODEL)
    args = parser.parse_args()
    names = LABELS.read_text("utf-8").splitlines()
    client = triton.InferenceServerClient(args.url)
    for path in args.pictures:
        encoded = triton.InferInput("encoded", [1], "BYTES")
        encoded.set_data_from_numpy(np.array([Path(path).read_bytes()], object))
        answer = client.infer(args.model, [encoded])
        boxes, scores, labels = (answer.as_numpy(name) for name in ("boxes", "scores", "labels"))
        found = [
            {"class": names[label], "score": round(float(score), 5), "xyxy": box.tolist()}
            for box, score, label in zip(boxes, scores, labels, strict=True)
        ]
        print(json.dumps({"image": path, "detections": found}))


if __name__ == "__main__":
    main()
