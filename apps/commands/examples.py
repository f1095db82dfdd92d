"""What `--help` shows below the options: commands to begin with, and the names of the zoo."""

from __future__ import annotations

from edge.built_in import BUILT_IN, PACKAGED

__all__ = ["EXAMPLES", "ZOO_NAMES", "epilog"]

# As in `edge.models.zoo`, which imports torch.
ZOO_NAMES = (
    "yolov2-tiny-voc",
    "yolov2-tiny",
    "yolov3-tiny",
    "yolov4-tiny",
    "yolov2",
    "yolov2-voc",
    "yolov3",
    "squeezedet-kitti",
)
EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "edge doctor                                # what works on this machine",
        "edge demo                                  # the whole way, without files of your own",
        "export-engine yolo.cfg --names yolo.names --int8 --calib photos/ -o out",
        "edge evaluate out/yolo.int8.onnx --data labelled/",
    ),
    "export-engine": (
        "export-engine --int8                       # the built-in detector, offline",
        "export-engine yolo.cfg --names yolo.names --resize stretch --int8 --calib photos/ -o out",
        "export-engine yolo.cfg --int8 --max-map-drop 0.005 --calib photos/ "
        "--accuracy-data tuning/",
        "export-engine yolo.int8.onnx -o engines    # on the Jetson, from the file made elsewhere",
    ),
    "import": (
        "edge import yolo11n.onnx",
        "edge import nanodet.onnx --names coco.names --data labelled/ -o out",
    ),
    "detect": (
        "edge detect out/yolo.int8.onnx photos/ --draw seen/ --json seen.json",
        "edge detect out/yolo.int8.onnx drive.mp4 --classes person,car --draw seen/",
    ),
    "evaluate": (
        "edge evaluate out/yolo.int8.onnx --data labelled/",
        "edge evaluate out/yolo.int8.onnx --data labelled/ --against out/yolo.fp32.onnx",
        "edge evaluate out/yolo.fp32.onnx --data labelled/ --try-contracts",
    ),
    "bench": (
        "edge bench out/yolo.int8.onnx out/yolo.fp16.onnx --baseline out/yolo.fp32.onnx",
        "edge bench engines/yolo.int8.engine --source drive.mp4 --layers",
    ),
    "estimate": (
        "edge estimate out/yolo.int8.onnx --board all --precision int8",
        "edge estimate yolov3-tiny --board orin-nano-super --layers 12 --plot layers.svg",
        "edge estimate yolo.cfg --board agx-orin-64 --measured bench.json",
        "edge estimate tiny-yolo-scenes --board all --precision int8 --cameras 40 --fps 15",
    ),
    "regress": (
        "edge regress --suite suite.toml --update   # once: store what holds now",
        "edge regress --suite suite.toml --report out/report",
    ),
    "dissect": ("edge dissect yolov3-tiny --classes person,car --data labelled/ -o out",),
    "prune": (
        "edge prune yolo.cfg --names yolo.names --data tuning/ --train photos/ --target-ms 50% "
        "--fine-tune 3000",
    ),
    "verify": ("edge verify out/yolo.fp32.onnx out/yolo.int8.onnx --data photos/",),
    "camera": (
        "edge camera                                # first camera, a window or figures",
        "edge camera out/yolo.int8.onnx --source rtsp://HOST/STREAM --serve 127.0.0.1:8080",
        "edge camera --source drive.mp4 --fast --headless --events seen.jsonl --stats stats.json",
    ),
    "handover": (
        "edge handover triton out/yolo.int8.onnx -o models",
        "edge handover triton out/yolo.int8.engine --instances 2 -o models",
    ),
    "robustness": (
        "edge robustness out/yolo.fp32.onnx out/yolo.int8.onnx --data labelled/ --report out",
        "edge robustness out/yolo.int8.onnx --corruptions low_light,lens_rain --severities 3",
    ),
    "data": (
        "edge data scenes --images 50",
        "edge data labelled/ --val tuning/ --against out/yolo.fp32.onnx --report out",
    ),
    "anchors": ("edge anchors --data photos/ --k 6 --size 416x416",),
    "train": ("edge train yolo.cfg --names yolo.names --data photos/ --val tuning/ -o out",),
    "calibrate": (
        "edge calibrate out/yolo.fp32.onnx --data photos/",
        "edge calibrate out/yolo.fp32.onnx --data drive.mp4 --choose 200 --not-in labelled/",
    ),
    "quantize": ("edge quantize out/yolo.fp32.onnx out/yolo.calib.json --keep first,heads",),
    "qat": ("edge qat out/yolo.fp32.onnx --data photos/ --val tuning/ -o out",),
    "sensitivity": (
        "edge sensitivity out/yolo.fp32.onnx --table out/yolo.calib.json --data tuning/",
    ),
    "search": (
        "edge search out/yolo.fp32.onnx --table out/yolo.calib.json --data tuning/ "
        "--max-map-drop 0.005",
    ),
    "share": ("edge share yolo.cfg --names yolo.names --bits 5 -o yolo.edgez",),
    "compress": (
        "edge compress yolo.cfg --names yolo.names --noise-db 30 --data photos/ -o yolo.edgez",
    ),
    "unpack": ("edge unpack yolo.edgez -o out",),
    "show": ("edge show out/yolo.int8.onnx",),
    "fetch": ("edge fetch yolov3-tiny && export-engine yolov3-tiny --int8",),
    "demo": ("edge demo --images 50",),
    "doctor": ("edge doctor --json doctor.json",),
}
_TAKES_BUILT_IN = (
    "export-engine",
    "estimate",
    "dissect",
    "prune",
    "train",
    "qat",
    "share",
    "compress",
)
_TAKES_ZOO = (*_TAKES_BUILT_IN, "fetch")
_NO_PACKAGE = ("dissect", "prune", "train")


def epilog(command: str) -> str:
    """Of a command's help, or of `edge` itself for an empty name."""
    lines = ["examples:", *(f"  {line}" for line in EXAMPLES[command])]
    if command in _TAKES_ZOO:
        half = len(ZOO_NAMES) // 2
        names = [" ".join(part) for part in (ZOO_NAMES[:half], ZOO_NAMES[half:])]
        lines += ["", "zoo names:", *(f"  {part}" for part in names)]
    if command in _TAKES_BUILT_IN:
        names = [*BUILT_IN, *(PACKAGED if command not in _NO_PACKAGE else ())]
        lines += ["", "built-in names:", f"  {' '.join(names)}"]
    if not command:
        lines += ["", "edge COMMAND --help explains a command and shows how it is used."]
    return "\n".join(lines)
