"""What stands for the lead on another node of a learner: starts this node's processes, watches them, and says that it is alive.

    node 0: `python -m rlvr_trainer` leads        node k: the same command comes here -> ranks k·n ... k·n + n-1, children of this process

It ends with 0 once all of them were told that there is nothing more to do, and with 1 as soon as one has ended otherwise: then the lead's
Job has lost a pod, and the attempt is over. A request to stop is passed on to the lead, which needs all processes for its last checkpoint.
They find the lead by its name, which is that of one attempt: none can meet the lead of another.
"""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rlvr_trainer.context import RunContext
from rlvr_trainer.distributed.lead import LostRankError, Meeting, describe_lost, start_followers
from rlvr_trainer.distributed.rendezvous import ask_to_stop

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.25


def follow_lead(context: RunContext, stop: threading.Event) -> int:
    """Be this node until its processes have ended; returns the exit code.

    Args:
        stop: set when this node has to go.
    """
    learner, deadlines = context.job.spec.learner, context.job.spec.deadlines
    first = context.node * learner.processes_per_node
    # The lead opens its store when it has claimed the attempt and read the newest checkpoint.
    meeting = Meeting(context.advertised_host, context.rendezvous_port, deadlines.provisioning_seconds)
    with _answering(context.status_port, context.node):
        children = start_followers(meeting, context.model_dir, range(first, first + learner.processes_per_node))
        logger.info("node %d of %d: ranks %s follow %s", context.node, learner.nodes, ", ".join(map(str, children)), meeting.host)
        try:
            lost = _await(children, stop, meeting)
        finally:
            for child in children.values():
                child.kill()
                child.wait()
    if lost is None:
        return 0
    message = describe_lost(lost, learner.processes, children[lost].returncode)
    print(f"error: {LostRankError.__name__}: node {context.node}: {message}", file=sys.stderr, flush=True)
    return 1


def _await(children: Mapping[int, "subprocess.Popen[bytes]"], stop: threading.Event, meeting: Meeting) -> int | None:
    """The first rank that failed; None when all have ended in order."""
    asked = False
    while True:
        asked = asked or (stop.is_set() and ask_to_stop(meeting.host, meeting.port))
        codes = {rank: child.poll() for rank, child in children.items()}
        for rank, code in codes.items():
            if code not in (None, 0):
                return rank
        if all(code == 0 for code in codes.values()):
            return None
        time.sleep(WATCH_SECONDS)


@contextmanager
def _answering(port: int, node: int) -> Iterator[None]:
    """Answers the probes of a pod that has no status of its own: it is there as long as this process is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in ("/healthz", "/readyz")
            data = json.dumps({"node": node}).encode() if known else b"{}"
            self.send_response(200 if known else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing: probes come every few seconds."""

    server = ThreadingHTTPServer(("", port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="probes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
