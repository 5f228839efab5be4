"""The Python SDK: a client of the workers' WebSocket that reconnects, resumes and acknowledges by itself."""

from imserver.client.actions import IMError, Limits
from imserver.client.service import IMClient

__all__ = ["IMClient", "IMError", "Limits"]
