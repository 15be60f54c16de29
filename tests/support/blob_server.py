"""A store of objects in memory that serves them under signed addresses, and fails as a test wants it."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rlvr_trainer.storage.documents import StoredBlob


class BlobServer:
    """A store of objects that serves them under their keys, as signed addresses of a real one do."""

    def __init__(self):
        self.objects, self.requests, self.failures = {}, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                key = self.path.removeprefix("/")
                outer.requests.append(key)
                status, data = 200, outer.objects.get(key)
                if outer.failures:
                    status, data = outer.failures.pop(), b""
                elif data is None:
                    status, data = 404, b""
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def put(self, key, data):
        self.objects[key] = bytes(data)
        return StoredBlob(key=key, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def put_if_absent(self, key, data):
        assert key not in self.objects
        return self.put(key, data)

    def list(self, prefix):
        return tuple(key for key in self.objects if key.startswith(prefix))

    def delete(self, keys):
        for key in list(keys):
            self.objects.pop(key, None)

    def signed_url(self, key, valid_seconds):
        return f"http://127.0.0.1:{self.server.server_address[1]}/{key}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
