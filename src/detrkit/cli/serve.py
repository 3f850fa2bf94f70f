"""`detrkit serve`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from detrkit.cli.inference import CompiledInference
from detrkit.cli.preflight import check_model, check_weights
from detrkit.serve import check_installed
from detrkit.serve.limits import Limits
from detrkit.serve.listening import is_loopback, listen
from detrkit.utils.console import console
from detrkit.utils.devices import DeviceName
from detrkit.utils.documents import read_text
from detrkit.utils.errors import DetrkitError
from detrkit.utils.existing import check_exists
from detrkit.utils.names import full_path
from detrkit.utils.ranges import InputSize, Range
from detrkit.utils.visible import one_line

TOKEN = "DETRKIT_TOKEN"
_SHORTEST = 16  # characters of a token
_LONGEST = 1000


@dataclass(frozen=True)
class Serve:
    """Answer requests over HTTP: objects in images, explanations, and a page to try it.

    POST /predict takes images as files of a form, as a raw body or as base64 in JSON, and answers with boxes in pixels
    of the original image, classes, scores and masks; POST /explain shows what the model attended to. The images of
    waiting requests share batches. GET / is the page; /health, /ready, /metrics and /openapi.json are for programs, and
    Label Studio can use the address as a backend. No address in a request is fetched. The first Ctrl-C or SIGTERM
    finishes what was taken, a second one ends at once.

    Such as:

    detrkit serve runs/first

    detrkit serve runs/first --host 0.0.0.0 --port 9090 --token-file token.txt

    detrkit serve detr-r50 --device 1 --max-batch 16 --max-queue 128
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Weights: a run directory, a .safetensors or official .pth file, a model name such as detr-r50 (published), or one
    on the Hugging Face Hub such as facebook/detr-resnet-50."""
    host: str = "127.0.0.1"
    """Address to listen at. The default one can be reached from this machine alone; 0.0.0.0 from every machine that
    finds this one."""
    port: Annotated[int, Range(ge=0, le=65_535)] = 8000
    """Port to listen at; 0: any free one, which is printed."""
    token_file: Path | None = None
    """File with a token of 16 characters or more, which clients must send as Authorization: Bearer TOKEN. By default
    the variable DETRKIT_TOKEN, and without it no token is needed."""
    label_studio_files: Path | None = None
    """Folder of Label Studio's files: its tasks may name files below it."""
    size: InputSize | None = None
    """Short side in pixels to resize images to; by default the checkpoint's (800 for published weights)."""
    device: DeviceName | None = None
    """cpu, cuda, cuda:1, mps, ... or the number of a GPU; by default a GPU if there is one. For several GPUs start one
    process for each, at ports of their own."""
    model: str | None = None
    """Model name, for official .pth files that do not name their model."""
    inference: CompiledInference = field(default_factory=CompiledInference)
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        """Check what needs no torch.

        Raises:
            DetrkitError: no such weights, model, folder or token, or packages that are not installed.
        """
        check_installed()
        check_weights(self.checkpoint)
        check_model(self.model)
        self.inference.check()
        if self.label_studio_files is not None and not check_exists(self.label_studio_files).is_dir():
            raise DetrkitError(f"{self.label_studio_files}: not a folder")
        self._token()

    def run(self) -> int:
        """Load the model, then serve until a signal comes."""
        self.check()
        token = self._token()
        with listen(self.host, self.port) as listening:
            from detrkit.detector import load
            from detrkit.serve.access import LOOPBACK_HOSTS
            from detrkit.serve.app import create_app
            from detrkit.serve.server import serve
            from detrkit.serve.warming import check_compiled

            detector = load(self.checkpoint, name=self.model, device=self.device)
            if self.size is not None:
                detector = detector.resized(self.size)
            detector = self.inference.applied(detector)
            if self.inference.compile:
                check_compiled(detector)
                log = logging.getLogger("detrkit.compile")  # of what is chosen
                log.addHandler(logging.StreamHandler())
                log.setLevel(logging.INFO)
                console.print("compiling: minutes, once for each size of batch; /ready says when requests are taken")
            loopback = is_loopback(listening)
            app = create_app(
                detector,
                limits=self.limits,
                token=token,
                hosts={*LOOPBACK_HOSTS, self.host.lower()} if loopback else None,
                label_studio_files=None if self.label_studio_files is None else full_path(self.label_studio_files),
            )
            port = listening.getsockname()[1]
            host = f"[{self.host}]" if ":" in self.host else self.host
            console.print(one_line(f"{detector.spec.name} on {detector.device}: http://{host}:{port}"))
            if not loopback and token is None:
                console.print("whoever reaches this address can use it: --token-file asks for a token")
            serve(app, listening, self.limits)
        console.print("stopped; every request that was taken is answered")
        return 0

    def _token(self) -> str | None:
        """Return the token of the file, or of the environment; None if there is none.

        Raises:
            DetrkitError: the file is missing, or the token too short or not of printable ASCII.
        """
        if self.token_file is not None:
            where, token = str(self.token_file), read_text(full_path(self.token_file)).strip()
        else:
            where, token = TOKEN, os.environ.get(TOKEN, "").strip()
            if not token:
                return None
        if not _SHORTEST <= len(token) <= _LONGEST or not token.isascii() or not token.isprintable() or " " in token:
            raise DetrkitError(
                f"{where}: a token must be {_SHORTEST} to {_LONGEST} printable ASCII characters without spaces, "
                "such as the output of: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        return token
