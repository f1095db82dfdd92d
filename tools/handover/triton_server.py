"""Start tritonserver on a model repository, ask it about pictures, load it, and write what it said.

Run by triton_check.py in the environment that holds PyTriton's wheel; it imports nothing of edge.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from pytriton.utils import distribution

_READY_S = 60.0


def start(repository: Path, port: int, log: Any) -> subprocess.Popen[bytes]:
    """The server on loopback, with its python backend running in this environment."""
    root = Path(distribution.get_root_module_path()) / "tritonserver"
    backends = repository.parent / "backends"
    shutil.copytree(root / "backends", backends, dirs_exist_ok=True)
    stub = distribution.get_stub_path(f"{sys.version_info.major}.{sys.version_info.minor}")
    shutil.copy(stub, backends / "python" / "triton_python_backend_stub")
    sites = [path for path in sys.path if path.endswith("site-packages")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(distribution.get_libs_path()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([os.environ["EDGE_ROOT"], *sites]),
    }
    options = {
        "model-repository": repository,
        "backend-directory": backends,
        "http-address": "127.0.0.1",
        "grpc-address": "127.0.0.1",
        "http-port": port,
        "grpc-port": port + 1,
        "allow-metrics": "false",
        "exit-timeout-secs": 5,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [str(root / "bin" / "tritonserver"), *words]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def ready(server: subprocess.Popen[bytes], client: Any, name: str) -> bool:
    """Whether the model answers before the server ends or time runs out."""
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and server.poll() is None:
        try:
            if client.is_model_ready(name):
                return True
        except Exception:  # not listening yet
            pass
        time.sleep(0.2)
    return False


def ask(client: Any, kind: Any, name: str, path: str) -> list[list[Any]]:
    """Boxes, scores and labels; over HTTP the file's bytes are sent, over gRPC its pixels."""
    if kind is http:
        given = kind.InferInput("encoded", [1], "BYTES")
        given.set_data_from_numpy(np.array([Path(path).read_bytes()], object))
    else:
        image = cv2.imread(path)
        given = kind.InferInput("image", list(image.shape), "UINT8")
        given.set_data_from_numpy(image)
    answer = client.infer(name, [given])
    return [answer.as_numpy(part).tolist() for part in ("boxes", "scores", "labels")]


def load(
    port: int, name: str, pictures: list[str], clients: int, count: int = 160
) -> dict[str, Any]:
    """Requests a second of so many clients at once, and what went wrong."""
    left, errors, lock = list(range(count)), [], threading.Lock()

    def work() -> None:
        client = http.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=120)
        while True:
            with lock:
                if not left:
                    return
                number = left.pop()
            try:
                ask(client, http, name, pictures[number % len(pictures)])
            except Exception as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"per_second": count / (time.perf_counter() - began), "errors": errors}


def main() -> None:
    repository, name, listed, target = (
        Path(sys.argv[1]),
        sys.argv[2],
        sys.argv[3],
        Path(sys.argv[4]),
    )
    port = int(os.environ.get("TRITON_PORT", "18800"))
    pictures: list[str] = json.loads(Path(listed).read_text())
    found: dict[str, Any] = {"ready": False, "answers": {}}
    with target.with_suffix(".log").open("w") as log:
        server = start(repository, port, log)
        try:
            web = http.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=120)
            found["ready"] = ready(server, web, name)
            if found["ready"]:
                rpc = grpc.InferenceServerClient(f"127.0.0.1:{port + 1}")
                for path in pictures:
                    found["answers"][path] = {
                        "http": ask(web, http, name, path),
                        "grpc": ask(rpc, grpc, name, path),
                    }
                load(port, name, pictures, 1, 16)
                found["load"] = {str(n): load(port, name, pictures, n) for n in (1, 16)}
                try:
                    web.infer(name, [])
                    found["empty"] = "answered"
                except Exception as error:
                    found["empty"] = str(error)[:200]
                rpc.close()
            web.close()
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
            target.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
