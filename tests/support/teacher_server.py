"""A teacher of sums behind a real HTTP server, which misbehaves as it is told to."""

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    teacher: "TeacherServer"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.teacher.lock:
            number = len(self.teacher.requests)
            self.teacher.requests.append((time.monotonic(), self.path, dict(self.headers), body))
            fault = self.teacher.faults.popleft() if self.teacher.faults else self.teacher.always
        try:
            if fault is not None:
                fault(self)
            elif self.path == "/v1/completions":
                logprobs = [None if one is None else {str(token): {"logprob": one}} for token, one in self.teacher.score(body["prompt"])]
                choice = {"index": 0, "text": "", "prompt_logprobs": logprobs}
                self.send(200, json.dumps({"choices": [choice]}).encode(), "application/json")
            else:
                self.say(self.teacher.answer(body["messages"][-1]["content"], number))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def say(self, text, finish="stop", tokens=10):
        usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        self.send(200, json.dumps({"id": "x", "choices": [choice], **usage}).encode(), "application/json")

    def send(self, status, body, kind="text/html", **headers):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class TeacherServer:
    """Serves `<url>/v1/chat/completions`; `faults` are done first, one a request, and then `always`, if it is set."""

    def __init__(self, answer=None):
        self.requests, self.faults, self.always, self.lock = [], deque(), None, threading.Lock()
        self.score = None
        """From the token ids of a prompt: each with its log-prob, the first with None; as vLLM's `prompt_logprobs`."""
        self.answer = answer or (lambda text, _: str(sum(map(int, re.findall(r"\d+", text)))))
        handler = type("BoundHandler", (Handler,), {"teacher": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def status(code, body=b"no", **headers) -> Fault:
    return lambda handler: handler.send(code, body, **headers)


def html(handler):
    handler.send(200, b"<html><body>Sign in to continue</body></html>")


def garbage(handler):
    handler.send(200, b'{"choices": [{"message": {"content": 7', "application/json")


def empty_choices(handler):
    handler.send(200, b'{"choices": []}', "application/json")


def hang_up(handler):
    handler.close_connection = True


def drip(handler):
    """A byte now and then: every single read is in time, and the answer never comes."""
    handler.send_response(200)
    handler.send_header("content-length", "1000000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def flood(handler):
    """More than anybody wants to keep."""
    handler.send(200, b"[" + b" " * (9 << 20))
