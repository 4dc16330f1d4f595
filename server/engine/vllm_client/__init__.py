"""The ``vllm`` engine as the gateway sees it: requests in, chunks out, versions staged, restarts."""

from server.engine.vllm_client.engine import VllmEngine, VllmOptions

__all__ = ["VllmEngine", "VllmOptions"]
