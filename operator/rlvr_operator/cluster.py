"""The API server: the only module that talks to it. Every request is bounded, counted, and fails as one of four errors.

    ConflictError     somebody was faster, or the object is another one: look again
    GoneError         there is no such object
    RefusedError      it will be refused again as long as nothing changes: tell the user
    UnavailableError  the server, the network or its limits: try again later

Objects are plain data. Children are written by server-side apply with one field manager, so create equals update.
"""

import json
import urllib.request
from collections.abc import AsyncIterator
from typing import Self

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config.config_exception import ConfigException

from rlvr_operator.kinds import KINDS
from rlvr_operator.metrics import REST_REQUESTS
from rlvr_operator.removals import Deletion
from rlvr_operator.render import Object

FIELD_MANAGER = "rlvr-operator"
TIMEOUT_SECONDS = 30.0
WATCH_SECONDS = 240
"""After which the API server ends a watch."""
SILENCE_SECONDS = 75.0
"""Longest silence of a watch; bookmarks come every minute."""
PAGE_SIZE = 200
TYPED_PATCH = "failed to create typed patch object"
"""What the API server says, with status 500, to an apply that its schema refuses."""

Query = list[tuple[str, str]]
_TIMEOUT = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)


class ClusterError(Exception):
    """A request failed; the message is the API server's own."""


class ConflictError(ClusterError):
    """The object has changed, or is another one of the same name."""

    def __init__(self, message: str, about: tuple[str, str, str] | None = None) -> None:
        super().__init__(message)
        self.about = about
        """Kind, namespace and name of what was to be written, if it is known."""


class GoneError(ClusterError):
    """There is no such object."""


class RefusedError(ClusterError):
    """Invalid or forbidden; the same request will be refused again."""


class UnavailableError(ClusterError):
    """The server cannot answer now."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ExpiredError(UnavailableError):
    """The version is too old to be watched from, or listed at: list anew."""


class Cluster:
    """A client of one API server; `async with` closes its connections."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> Self:
        """The cluster that this process runs in, or that KUBECONFIG names.

        Raises:
            ConfigException: neither is there.
        """
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)
        except ConfigException:
            await config.load_kube_config(client_configuration=settings)
        settings.connection_pool_maxsize = 0  # watches hold a connection each; requests are bounded by the number of workers
        # Without proxies there is nothing to learn from the environment; aiohttp would look for a .netrc in a thread at each request.
        settings.client_session_kwargs = {"trust_env": bool(urllib.request.getproxies())}
        return cls(client.ApiClient(settings))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()

    async def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """One object, of the cluster without a namespace; None if there is none."""
        try:
            return await self._request("GET", KINDS[kind].path(namespace, name))
        except GoneError:
            return None

    async def pages(self, kind: str, namespace: str | None, labels: str = "", fields: str = "") -> AsyncIterator[tuple[list[Object], str]]:
        """All objects of a kind, one page in memory at a time, with the version of the whole. They carry kind and apiVersion, which the API
        server leaves out in lists."""
        query: Query = [("limit", str(PAGE_SIZE)), ("labelSelector", labels), ("fieldSelector", fields)]
        while True:
            page = await self._request("GET", KINDS[kind].path(namespace), query=[pair for pair in query if pair[1]])
            yield [_typed(kind, item) for item in page["items"]], page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue")
            if not token:
                return
            query = [*query[:3], ("continue", token)]

    async def list(self, kind: str, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        """All objects of a kind."""
        return [item async for items, _ in self.pages(kind, namespace, labels, fields) for item in items]

    async def watch(self, kind: str, namespace: str | None, version: str, labels: str = "") -> AsyncIterator[tuple[str, Object]]:
        """What happens after a version: ADDED, MODIFIED, DELETED or BOOKMARK, and the object. Ends when the server wants it to.

        Raises:
            ExpiredError: the version is too old.
            UnavailableError: the stream broke off, or was silent for too long.
        """
        path, seconds = KINDS[kind].path(namespace), str(WATCH_SECONDS)
        query = [("watch", "1"), ("allowWatchBookmarks", "true"), ("resourceVersion", version), ("timeoutSeconds", seconds)]
        timeout = aiohttp.ClientTimeout(total=None, connect=TIMEOUT_SECONDS, sock_read=SILENCE_SECONDS)
        response = await self._send("GET", path, query=[*query, *([("labelSelector", labels)] if labels else [])], timeout=timeout)
        try:
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise _error(int(status.get("code", 500)), json.dumps(status), {}, f"GET {path} (watch)")
                yield event["type"], _typed(kind, event["object"])
        except (TimeoutError, aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise UnavailableError(f"GET {path} (watch): {type(error).__name__}: {error}") from error
        finally:
            response.close()

    async def apply(self, item: Object, uid: str | None = None) -> Object:
        """Server-side apply of a child.

        Args:
            uid: of the object that is there; a newer one of the name is a ConflictError. None: there is none.
        """
        body = item if uid is None else {**item, "metadata": {**item["metadata"], "uid": uid}}
        return await self._apply(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"], body)

    async def apply_status(self, namespace: str, name: str, resource_version: str, status: Object) -> Object:
        """Server-side apply of a job's status, if the job is still as it was seen."""
        kind = KINDS["RLVRJob"]
        meta = {"name": name, "namespace": namespace, "resourceVersion": resource_version}
        body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta, "status": status}
        return await self._apply(kind.name, namespace, name, body, "status")

    async def _apply(self, kind: str, namespace: str, name: str, body: Object, subresource: str | None = None) -> Object:
        path = KINDS[kind].path(namespace, name, subresource)
        try:
            return await self._request("PATCH", path, body, _APPLY, "application/apply-patch+yaml")
        except ConflictError as error:
            raise ConflictError(str(error), (kind, namespace, name)) from error

    async def create(self, item: Object) -> bool:
        """Create an object; False if one of the name is there."""
        try:
            await self._request("POST", KINDS[item["kind"]].path(item["metadata"]["namespace"]), item)
        except ConflictError:
            return False
        return True

    async def post(self, path: str, body: Object, query: Query | None = None) -> Object:
        """POST what stays nobody's object: a review, a dry run."""
        return await self._request("POST", path, body, query)

    async def replace(self, item: Object) -> Object:
        """Write a whole object, if it is still as it was read."""
        return await self._request("PUT", KINDS[item["kind"]].path(item["metadata"]["namespace"], item["metadata"]["name"]), item)

    async def merge(self, kind: str, namespace: str, name: str, patch: Object, subresource: str | None = None) -> Object:
        """Merge-patch an object."""
        path = KINDS[kind].path(namespace, name, subresource)
        return await self._request("PATCH", path, patch, content_type="application/merge-patch+json")

    async def delete(self, namespace: str, deletion: Deletion) -> None:
        """Delete one object, and its pods in the background; nothing happens if it is gone, or another one."""
        body: Object = {"preconditions": {"uid": deletion.uid}, "propagationPolicy": "Background"}
        if deletion.grace_seconds is not None:
            body["gracePeriodSeconds"] = deletion.grace_seconds
        try:
            await self._request("DELETE", KINDS[deletion.kind].path(namespace, deletion.name), body)
        except (GoneError, ConflictError):
            return

    async def _request(
        self, method: str, path: str, body: Object | None = None, query: Query | None = None, content_type: str = "application/json"
    ) -> Object:
        response = await self._send(method, path, body, query, content_type)
        try:
            answer: Object = json.loads(await response.read())
        except (TimeoutError, aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise UnavailableError(f"{method} {path}: {type(error).__name__}: {error}") from error
        return answer

    async def _send(
        self, method: str, path: str, body: Object | None = None, query: Query | None = None, content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout = _TIMEOUT,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        """A request that was accepted; its body is yet to be read."""
        code = "error"
        try:
            request = await self._api.param_serialize(
                method, path, query_params=query or [], body=body, auth_settings=["BearerToken"],
                header_params={"Accept": "application/json", "Content-Type": content_type},
            )  # fmt: skip
            response: aiohttp.ClientResponse = (await self._api.call_api(*request, _request_timeout=timeout)).response
            code = str(response.status)
            if not 200 <= response.status <= 299:
                data = await response.read()
                raise _error(response.status, data.decode("utf-8", "replace"), dict(response.headers), f"{method} {path}")
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
            raise UnavailableError(f"{method} {path}: {type(error).__name__}: {error}") from error
        except ApiException as error:
            code = str(error.status)
            raise _error(int(error.status or 0), str(error.body or error.reason), dict(error.headers or {}), f"{method} {path}") from error
        finally:
            REST_REQUESTS.labels(code=code, method=method).inc()
        return response


_APPLY: Query = [("fieldManager", FIELD_MANAGER), ("force", "true"), ("fieldValidation", "Strict")]


def _error(code: int, body: str, headers: dict[str, str], request: str) -> ClusterError:
    message, reason = _words(body)
    text = f"{request}: {message}"
    if code == 404:
        return GoneError(text)
    if code == 409:
        return ConflictError(text)
    if code == 410:
        return ExpiredError(text)
    if code == 429 or code >= 500:
        if TYPED_PATCH in message:
            return RefusedError(text)
        return UnavailableError(text, _seconds(headers))
    if code == 403 and "because it is being terminated" in message:
        return GoneError(text)
    return RefusedError(f"{text} ({reason or code})")


def _typed(kind: str, item: Object) -> Object:
    return {"kind": kind, "apiVersion": KINDS[kind].api_version, **item}


def _words(body: str) -> tuple[str, str]:
    try:
        status = json.loads(body)
        return str(status.get("message", body)), str(status.get("reason", ""))
    except (ValueError, AttributeError):
        return body[:500], ""


def _seconds(headers: dict[str, str]) -> float | None:
    value = {name.lower(): text for name, text in headers.items()}.get("retry-after", "")
    return float(value) if value.isdigit() else None
