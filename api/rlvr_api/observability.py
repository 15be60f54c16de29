"""What a job exports of itself."""

from typing import Annotated

from pydantic import Field

from rlvr_api.model import ApiModel, Fraction, Uri


class Tracing(ApiModel):
    """OpenTelemetry over OTLP/HTTP."""

    endpoint: Annotated[Uri, Field(pattern=r"^https?://.+")]
    """Base URL of the collector, for example `http://otel-collector:4318`."""
    sampling_ratio: Fraction = 1.0
    """Share of the traces kept, decided once at a group's admission."""


class Observability(ApiModel):
    """Traces and metrics."""

    tracing: Tracing | None = None
    """Unset: nothing is exported."""
