"""Sigmoid routing on the CPU."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.fused_moe.router import router_factory
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter


class SigmoidCPURouter(CPURouter):
    """vLLM's CPU router, which takes sigmoid scores in its grouped top-k only and elsewhere asserts softmax.

    One group that holds all experts is the same rule: the top k of sigmoid plus bias, weighted without the bias.
    """

    use_grouped_topk: bool
    num_expert_group: int | None
    topk_group: int | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.scoring_func == "sigmoid" and self.custom_routing_function is None and self.num_expert_group is None:
            self.use_grouped_topk = True
            self.num_expert_group = self.topk_group = 1


def hook() -> None:
    """Have vLLM build its CPU routers from SigmoidCPURouter."""
    router_factory.CPURouter = SigmoidCPURouter
