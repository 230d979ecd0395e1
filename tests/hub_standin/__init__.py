"""A stand-in Hugging Face Hub for tests: a real HTTP server on loopback for the unmodified clients."""

from hub_standin.faults import Fault
from hub_standin.hub import Hub, Request
from hub_standin.processes import TestHub
from hub_standin.server import serve

__all__ = ["Fault", "Hub", "Request", "TestHub", "serve"]
