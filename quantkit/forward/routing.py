"""Which tokens go to which experts, and which tokens come next for an expert that gets too few."""

from __future__ import annotations

from dataclasses import dataclass

import torch

NOWHERE = -1  # expert of a token that was excluded


@dataclass(frozen=True)
class BatchRouting:
    """What the router says of one batch: `chosen` int64 [M, k], `weights` float32 [M, k], and the next in line."""

    chosen: torch.Tensor
    weights: torch.Tensor
    next_scores: torch.Tensor  # float32 [n, E], descending; -inf where there are fewer tokens
    next_rows: torch.Tensor  # int64 [n, E]


def route(
    logits: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, floor: int
) -> BatchRouting:
    """Return a batch's routing and, per expert, its `floor` tokens with the highest affinity that it was not given.

    `logits` [M, E] are the router's, `rows` [M] the tokens' numbers. Affinity is the unbiased sigmoid; it grows with
    the logit, and logits do not saturate.
    """
    count = min(floor, len(rows))
    others = logits.float().scatter(1, chosen, -torch.inf)
    scores, place = others.topk(count, dim=0)
    return BatchRouting(chosen, weights, scores, rows[place])


class LayerRouting:
    """The routing of all T tokens of a layer, filled batch by batch."""

    def __init__(self, tokens: int, used: int, experts: int, floor: int, device: torch.device) -> None:
        self.floor = floor
        self.experts = experts
        self._chosen = torch.full((tokens, used), NOWHERE, dtype=torch.int16, device=device)
        self._weights = torch.zeros(tokens, used, dtype=torch.float32, device=device)
        self._next_scores = torch.empty(0, experts, device=device)
        self._next_rows = torch.empty(0, experts, dtype=torch.int64, device=device)
        self._order = torch.empty(0, dtype=torch.int64)
        self._ends = [0]

    def add(self, rows: torch.Tensor, batch: BatchRouting) -> None:
        """Take in the batch of the tokens `rows` [M]."""
        self._chosen[rows] = batch.chosen.to(torch.int16)
        self._weights[rows] = batch.weights
        scores = torch.cat([self._next_scores, batch.next_scores])
        numbers = torch.cat([self._next_rows, batch.next_rows])
        self._next_scores, place = scores.topk(min(self.floor, len(scores)), dim=0)
        self._next_rows = numbers.gather(0, place)

    def close(self) -> None:
        """Sort the tokens by expert; no batch may follow."""
        flat = self._chosen.flatten()
        self._order = flat.argsort(stable=True)
        counts = torch.bincount(flat.to(torch.int64) + 1, minlength=self.experts + 1)
        self._ends = counts.cumsum(0).tolist()

    def routed(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of `expert`, int64 [M] ascending, and the weights of its output for them, float32 [M]."""
        places = self._order[self._ends[expert] : self._ends[expert + 1]]
        rows = torch.div(places, self._chosen.shape[1], rounding_mode="floor")
        return rows, self._weights.flatten()[places]

    def routed_count(self, expert: int) -> int:
        return self._ends[expert + 1] - self._ends[expert]

    def topped_up(self, expert: int) -> torch.Tensor:
        """Tokens beside the routed ones that bring `expert` to the floor, int64 [M], next in affinity first."""
        wanted = max(self.floor - self.routed_count(expert), 0)
        scores = self._next_scores[:wanted, expert]
        return self._next_rows[:wanted, expert][scores > -torch.inf]
