"""Every metric of a verification: which way is better, what it says, and how it is judged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`better` is 1 where more is better, -1 where less is.

    `own`: one model has it alone, so the reference has its own; else it compares two models, and what it is held
    against is the reference's second measurement against its first. `hard`: the figure itself is judged, not its
    interval.
    """

    better: int
    says: str
    own: bool = False
    hard: bool = False


METRICS = {
    "finite": Metric(1, "scored positions without NaN, infinity or a made-up log-probability", hard=True),
    "ppl.ratio": Metric(-1, "perplexity over the reference's"),
    "kld.mean": Metric(-1, "mean KL divergence from the reference, nats"),
    "kld.median": Metric(-1, "its median"),
    "kld.p99": Metric(-1, "its 99 % quantile"),
    "kld.p999": Metric(-1, "its 99.9 % quantile"),
    "kld.max": Metric(-1, "its maximum"),
    "same_top1": Metric(1, "positions where both find the same token most probable"),
    "rms_delta_p": Metric(-1, "root mean square change of the probability of the token that stands there"),
    "layers.expert_error_max": Metric(-1, "largest relative error of an expert's output on the reference's own states"),
    "layers.expert_error_median": Metric(-1, "median of these errors"),
    "layers.expert_gain_min": Metric(1, "smallest factor by which an expert's output is scaled; 0 for a lost one"),
    "layers.expert_gain_max": Metric(-1, "largest such factor"),
    "layers.routing_min": Metric(1, "tokens sent to the same experts, in the layer with the fewest"),
    "layers.attention_error_max": Metric(-1, "largest relative error of an attention's output"),
    "tool_calls.query_success": Metric(1, "requests that were answered at all", own=True, hard=True),
    "tool_calls.trigger_f1": Metric(1, "F1 of answering with calls, the reference as truth"),
    "tool_calls.match_rate": Metric(1, "calls where one is wanted and none where none is", own=True),
    "tool_calls.schema_accuracy": Metric(1, "turns with calls in which every call is valid", own=True),
    "tool_calls.tool_name_match": Metric(1, "same tools called, where both call"),
    "tool_calls.arg_exact": Metric(1, "same arguments as JSON, where both call"),
    "tool_calls.arg_match": Metric(1, "same arguments but for case, blanks and punctuation, per parameter"),
    "tool_calls.call_count_cos": Metric(1, "cosine of the histograms of calls per turn"),
    "tool_calls.expected_exact": Metric(1, "exactly the expected calls, where they are known", own=True),
    "tool_calls.parser_fail": Metric(-1, "completions with a call that the server did not parse, or wrongly", own=True),
    "tool_calls.think_integrity": Metric(1, "one closed, filled thinking block before everything else", own=True),
    "tool_calls.reasoning_only": Metric(-1, "answers of thinking alone", own=True),
    "tool_calls.stream_parity": Metric(1, "same parsed answer streamed and whole", own=True, hard=True),
    "tool_calls.prompt_tokens_equal": Metric(1, "same number of prompt tokens as the reference", hard=True),
    "tool_calls.interleaved_success": Metric(1, "multi-turn tasks that reached their goal", own=True),
    "tool_calls.interleaved_control": Metric(1, "the same when reasoning is not sent back", own=True),
    "tool_calls.interleaved_turns": Metric(-1, "turns that they took", own=True),
    "tool_calls.reasoning_echoed": Metric(
        1, "second turns whose prompt holds the reasoning sent back", own=True, hard=True
    ),
    "tool_calls.interleaved_thinking": Metric(1, "their turns with thinking", own=True),
    "tool_calls.degeneration": Metric(-1, "answers that repeat themselves or fall into another script", own=True),
    "tool_calls.abstention": Metric(1, "no call where no tool fits", own=True),
    "tool_calls.language_following": Metric(1, "answers in the language asked for", own=True),
}
# What a figure is when nothing differs.
SAME = {"kld.mean": 0.0, "kld.median": 0.0, "kld.p99": 0.0, "kld.p999": 0.0, "kld.max": 0.0, "rms_delta_p": 0.0}
SAME |= {"ppl.ratio": 1.0, "same_top1": 1.0}
