"""The command line: `edge COMMAND`, and `export-engine`.

Each command is a module of `apps.commands`, imported only when it is called: `edge --help` needs
none of them.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import edge
from apps.commands.examples import epilog
from apps.commands.options import Target
from apps.commands.terminal import Terminal, tables_on_stderr
from edge.errors import EdgeError
from edge.files import plain_text, protect
from edge.reporting import listen

__all__ = ["export_engine", "main"]


class Command(Protocol):
    """A module of `apps.commands`."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; the exit status."""


class Entry(NamedTuple):
    """A command's module in `apps.commands`, and its line in `edge --help`."""

    module: str
    text: str


_COMMANDS = {
    "export-engine": Entry("export", "turn weights into an engine, writing every file between"),
    "import": Entry("import_", "recognise a detector of another project and take it over"),
    "detect": Entry("detect", "find objects in pictures and videos"),
    "evaluate": Entry("evaluate", "measure average precision on labelled pictures"),
    "bench": Entry("bench", "measure FPS and latency beside a baseline in the same run"),
    "estimate": Entry("estimate", "predict milliseconds on boards that are not here"),
    "regress": Entry(
        "regress", "fail when an artifact of the suite became slower or less accurate"
    ),
    "dissect": Entry("dissect", "keep some classes of a detector, and the channels they need"),
    "prune": Entry("prune", "remove channels until a time, size or accuracy target is met"),
    "verify": Entry("verify", "tell whether two artifacts compute the same, and where they part"),
    "camera": Entry("camera", "detect live in a camera, a video or the built-in scenes"),
    "handover": Entry("handover", "write a folder that Triton Inference Server takes as it is"),
    "robustness": Entry("robustness", "measure what is still found in fog, noise and low light"),
    "data": Entry("data", "show what a labelled set holds, and which labels look wrong"),
    "anchors": Entry("anchors", "compute anchor sizes that fit labelled pictures"),
    "train": Entry("train", "train a detector on labelled pictures"),
    "calibrate": Entry("calibrate", "measure the INT8 scales of an FP32 graph"),
    "quantize": Entry("quantize", "make an INT8 graph from an FP32 graph and its scales"),
    "qat": Entry("qat", "fine-tune a network for INT8, with or without labels"),
    "sensitivity": Entry("sensitivity", "measure how much accuracy each layer loses in INT8"),
    "search": Entry("search", "find the layers to keep out of INT8 for an accuracy budget"),
    "share": Entry("share", "reduce each layer to a few weight values, and write a package"),
    "compress": Entry("compress", "prune, share and code weights into a package"),
    "unpack": Entry("unpack", "turn a package into ONNX, safetensors, cfg and weights"),
    "show": Entry("show", "show what an artifact is and where it comes from"),
    "fetch": Entry("fetch", "download the published weights of a model"),
    "demo": Entry("demo", "run the whole way on the built-in world, and print one table"),
    "doctor": Entry("doctor", "check what works on this machine, and say why the rest does not"),
}


def _module(name: str) -> Command:
    return cast(Command, import_module(f"apps.commands.{_COMMANDS[name].module}"))


class _Parser(argparse.ArgumentParser):
    """A parser that gets the options of its command when they are first needed."""

    command: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.command is not None:
            module, self.command = _module(self.command), None
            module.arguments(self)
            self.set_defaults(run=module.run)
        return super().parse_known_args(args, namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """`edge COMMAND`; the exit status: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    about = "Turn a trained detector into an INT8 or FP16 engine that is measured, and run it."
    parser = _Parser(prog="edge", description=about, **_layout(""))
    parser.add_argument("--version", action="version", version=f"edge {edge.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, entry in _COMMANDS.items():
        text = entry.text
        commands.add_parser(name, help=text, description=text, **_layout(name)).command = name
    return _run(parser, argv)


def export_engine(argv: Sequence[str] | None = None) -> int:
    """`export-engine`, the same as `edge export-engine`."""
    name = "export-engine"
    parser = _Parser(prog=name, description=_COMMANDS[name].text, **_layout(name))
    parser.command = name
    return _run(parser, argv)


def _outputs(args: argparse.Namespace) -> list[Target]:
    """Files that the command writes; `-` is standard output."""
    return [value for value in vars(args).values() if isinstance(value, Target)]


def _inputs(args: argparse.Namespace) -> Iterator[Path]:
    """Files that the arguments name, and those that belong to them; outputs are `Target`s."""
    for value in vars(args).values():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, (str, Path)) and not isinstance(one, Target):
                path = Path(one)
                yield path
                if path.suffix == ".cfg":
                    yield from (path.with_suffix(".weights"), path.with_suffix(".names"))


def _layout(name: str) -> dict[str, Any]:
    """Examples keep their lines."""
    return {"epilog": epilog(name), "formatter_class": argparse.RawDescriptionHelpFormatter}


def _run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    args: Any = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding does not have must not cost the figures beside it.
        sys.stdout.reconfigure(errors="backslashreplace")
    before = listen(Terminal())
    try:
        with protect(_inputs(args)), tables_on_stderr("-" in _outputs(args)):
            return int(args.run(args))
    except EdgeError as error:
        print(f"{parser.prog}: {plain_text(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"{parser.prog}: out of memory: {error or 'close other programs'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: cancelled", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output, such as `head`, has gone; nobody is left to tell.
        sys.stderr.close()
        return 0
    finally:
        listen(before)


if __name__ == "__main__":
    sys.exit(main())
