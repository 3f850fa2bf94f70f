"""`detrkit serve` as a process: its signals, slow and many connections, and a restart after kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from detrkit.weights.checkpoint import save_model
from helpers.explained import detector_of
from helpers.serving import encoded, painted

pytestmark = pytest.mark.slow
PATIENCE = 120  # seconds for a process to import torch on busy cores


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    detector = detector_of("detr-r50", size=64)
    file = tmp_path_factory.mktemp("serve") / "tiny.safetensors"
    save_model(file, detector.model, detector.spec)
    return file


@contextmanager
def command(checkpoint, *options, port=0):
    """The process of a command that answers, and its address; killed at the end if it still runs."""
    words = [
        sys.executable,
        "-m",
        "detrkit",
        "serve",
        str(checkpoint),
        "--device",
        "cpu",
        "--port",
        str(port),
        *options,
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        line = process.stdout.readline()
        match = re.search(r"(http://\S+)", line)
        assert match, line + process.stderr.read()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if httpx.get(f"{match[1]}/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        yield process, match[1]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def png():
    return encoded(painted(300, 200))


def waiting(address):
    """Images that wait or are worked on."""
    text = httpx.get(f"{address}/metrics", timeout=60).text
    return float(re.search(r"^detrkit_waiting_images (\S+)", text, re.MULTILINE)[1])


def test_a_killed_server_starts_again_and_sigterm_finishes_what_was_taken(checkpoint, png):
    """After kill -9 under load the same port and command work at once; SIGTERM lets a request under way end."""
    stop = threading.Event()
    with command(checkpoint) as (process, address):
        port = int(address.rsplit(":", 1)[1])
        want = httpx.post(f"{address}/predict?threshold=0", content=png, timeout=60).json()

        def hammer():
            while not stop.is_set():
                with suppress(httpx.TransportError):
                    httpx.post(f"{address}/predict", content=png, timeout=5)
                time.sleep(0.05)

        clients = [threading.Thread(target=hammer) for _ in range(4)]
        for client in clients:
            client.start()
        time.sleep(0.5)
        process.kill()
        process.wait()
    stop.set()
    for client in clients:
        client.join()
    files = [("file", (f"{i}.png", encoded(painted(1600, 1200, i)))) for i in range(8)]  # a second to decode, and more
    with command(checkpoint, port=port) as (process, address), ThreadPoolExecutor(1) as threads:
        assert httpx.post(f"{address}/predict?threshold=0", content=png, timeout=60).json() == want
        under_way = threads.submit(httpx.post, f"{address}/predict", files=files, timeout=60)
        while not waiting(address) and not under_way.done():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        response = under_way.result()
        assert response.status_code == 200 and len(response.json()["images"]) == 8
        assert process.wait(60) == 0
        out, err = process.communicate()
        assert "stopped; every request that was taken is answered" in out and "Traceback" not in err


def test_a_second_signal_ends_at_once(checkpoint, png):
    with command(checkpoint, "--timeout", "600", "--body-timeout", "600") as (process, address):
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(1.0)
            assert process.poll() is None  # it waits for the body that is under way
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 128 + signal.SIGTERM
        assert "stopped at once by SIGTERM" in process.stderr.read()


def test_slow_and_many_connections(checkpoint, png):
    """Slow-loris, half requests, garbage and 1,000 idle connections: the service goes on answering."""
    options = ["--max-connections", "50", "--body-timeout", "2"]
    with command(checkpoint, *options) as (process, address):
        place = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
        garbage = socket.create_connection(place)
        garbage.sendall(b"\x16\x03\x01\x02\x00" + os.urandom(300) + b"\r\n\r\n")
        assert garbage.recv(100).startswith(b"HTTP/1.1 400")
        garbage.close()

        body = socket.create_connection(place)  # a body that never ends
        body.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        body.settimeout(20)
        assert body.recv(1000).startswith(b"HTTP/1.1 408")

        smuggled = socket.create_connection(place)
        smuggled.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert smuggled.recv(1000)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 422")
        smuggled.close()

        loris = [socket.create_connection(place) for _ in range(40)]
        for one in loris:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        assert httpx.get(f"{address}/health", timeout=20).status_code == 200

        idle = []
        for _ in range(960):
            one = socket.socket()
            one.settimeout(20)
            one.connect(place)
            idle.append(one)
        refused = idle[-1].recv(1000)
        assert refused.startswith(b"HTTP/1.1 503") and b'"connections"' in refused
        deadline = time.monotonic() + 60
        answered = None
        while answered is None and time.monotonic() < deadline:
            for one in loris:  # a byte now and then, so that the connection looks alive
                with suppress(OSError):
                    one.sendall(b"a")
            try:
                response = httpx.post(f"{address}/predict", content=png, timeout=20)
                answered = response if response.status_code == 200 else None
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        assert answered is not None and answered.json()["images"]
        assert process.poll() is None
        for one in (*loris, *idle, body):
            one.close()
        memory = Path(f"/proc/{process.pid}/status")
        if memory.exists():
            assert int(re.search(r"VmRSS:\s+(\d+)", memory.read_text())[1]) < 2_000_000  # kB


def test_a_client_that_leaves_and_one_that_sends_too_much(checkpoint, png):
    with command(checkpoint, "--max-megabytes", "1") as (process, address):
        for length in (2_000_000, 40_000_000):
            response = httpx.post(f"{address}/predict", content=bytes(length), timeout=60)
            assert response.status_code == 413 and response.headers["connection"] == "close"
        place = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
        for _ in range(20):  # clients that leave before the answer
            gone = socket.create_connection(place)
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(png)}\r\n\r\n"
            gone.sendall(head.encode() + png)
            gone.close()
        response = httpx.post(f"{address}/predict", content=png, timeout=60)
        assert response.status_code == 200 and json.loads(response.text)["images"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_port_that_is_taken_is_one_line(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = [sys.executable, "-m", "detrkit", "serve", str(checkpoint), "--port", str(port)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.startswith(f"detrkit: error: --host 127.0.0.1 --port {port}: cannot listen (")
    assert len(done.stderr.splitlines()) == 1
