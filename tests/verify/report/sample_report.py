"""A report as a real comparison would leave it: AWQ against FP8, 62 layers of 256 experts, every verdict."""

from typing import Any

import numpy as np

LAYERS, EXPERTS = 62, 256


def sample_report() -> dict[str, Any]:
    """A whole report, the same on every call; every number in it is different, so that a test can look for each."""
    return {
        "format": "quantkit report 1",
        "created": "2026-11-22T13:37:05+00:00",
        "verdict": "FAIL",
        "reasons": [
            "tool_calls.arg_exact 0.8712 (0.8431 … 0.8977) is 0.07 below the reference, 0.02 is allowed",
            "tool_calls.interleaved_success cannot be decided: 0.9583 (0.9167 … 0.9917), rule: at least 0.95",
        ],
        "models": _models(),
        "gate": _gate(),
        "metrics": _metrics(),
        "reference_metrics": {"tool_calls": _reference_calls()},
        "noise": {"kld.mean": 0.001713, "same_top1": 0.9874, "tool_calls.trigger_f1": 0.9862},
        "intervals": {
            "kld.mean": {"low": 0.02641, "high": 0.03017, "standard_error": 0.000962},
            "same_top1": {"low": 0.9219, "high": 0.9283, "standard_error": 0.001631},
            "ppl.ratio": {"low": 1.0081, "high": 1.0149, "standard_error": 0.001752},
            "tool_calls.trigger_f1": {"low": 0.9714, "high": 0.9911, "standard_error": 0.005021},
            "tool_calls.arg_exact": {"low": 0.8431, "high": 0.8977, "standard_error": 0.01393},
        },
        "histogram": {"kld": _histogram()},
        "by_position": [
            {"from": at, "to": at + 127, "kld": 0.04137 - 0.0031 * at / 256, "same_top1": 0.9131 + 0.0027 * at / 256}
            for at in range(1, 1024, 128)
        ],
        "layers": _layers(),
        "worst": _worst(),
        "differences": _differences(),
        "provider_verifier": {
            "reference": {"match_rate": 0.9878, "schema_accuracy": 0.9971, "trigger_similarity": 0.9861},
            "quantized": {"match_rate": 0.9796, "schema_accuracy": 0.9903, "trigger_similarity": 0.9817},
        },
        "engines": [
            {
                "left": "vLLM",
                "right": "streamed",
                "ppl_left": 4.9127,
                "ppl_right": 4.9164,
                "kld_mean": 0.000874,
                "same_top1": 0.9938,
            }
        ],
        "not_measured": [
            "Contexts above 32,768 tokens: the reference server was started with that length.",
            "SGLang: not installed on this machine.",
        ],
        "notes": ["Divergence is a lower bound: 128 tokens per position are compared, the rest counts as one."],
        "texts": {"sha256": "5f1e" * 16, "passages": 164, "tokens": 167_936},
        "requests": {"sha256": "c0d4" * 16, "count": 132, "loops": 10},
        "versions": {"quantkit": "0.1.0", "python": "3.11.9"},
    }


def _models() -> dict[str, Any]:
    reference = {
        "name": "MiniMax-M2.7",
        "path": "/models/MiniMax-M2.7",
        "kind": "FP8 checkpoint",
        "engine": "vllm",
        "engine_version": "0.32.0",
        "command": "vllm serve /models/MiniMax-M2.7 --tensor-parallel-size 4 --dtype bfloat16 "
        "--enable-auto-tool-choice --tool-call-parser minimax_m2 --reasoning-parser minimax_m2 --max-logprobs 128",
        "config_sha256": "1a2b" * 16,
        "weights_sha256": "3c4d" * 16,
        "tokenizer_sha256": "77e0" * 16,
        "bytes": 230_118_744_064,
        "bits_per_weight": 8.031,
        "hardware": "4x H100 80 GB",
        "revision": "e3c1f0b",
        "dimensions": {"layers": LAYERS, "experts": EXPERTS},
    }
    changed = {
        "name": "MiniMax-M2.7-AWQ",
        "path": "/models/MiniMax-M2.7-AWQ",
        "kind": "AWQ INT4 checkpoint, groups of 128",
        "command": str(reference["command"]).replace("M2.7 ", "M2.7-AWQ "),
        "config_sha256": "9f8e" * 16,
        "weights_sha256": "6b5a" * 16,
        "bytes": 124_873_410_560,
        "bits_per_weight": 4.357,
        "revision": None,
    }
    return {"reference": reference, "quantized": reference | changed}


def _gate() -> dict[str, Any]:
    keys = ("metric", "rule", "value", "low", "high", "margin", "noise", "reference", "verdict", "why")
    trigger = "at least 0.98, or 0.015 below noise"
    wrong = "0.07 below the reference; mostly numbers given as strings in nested objects"
    few = "24 loops of four turns are too few"
    rows: list[tuple[Any, ...]] = [
        ("kld.mean", "at most 0.05", 0.02823, 0.02641, 0.03017, None, 0.001713, None, "PASS", ""),
        ("same_top1", "at least 0.9", 0.9251, 0.9219, 0.9283, None, 0.9874, None, "PASS", ""),
        ("ppl.ratio", "at most 1.03", 1.0115, 1.0081, 1.0149, None, None, None, "PASS", ""),
        ("tool_calls.trigger_f1", trigger, 0.9817, 0.9714, 0.9911, 0.015, 0.9862, None, "PASS", ""),
        ("tool_calls.arg_exact", "at most 0.02 below", 0.8712, 0.8431, 0.8977, 0.02, None, 0.9412, "FAIL", wrong),
        (
            "tool_calls.interleaved_success",
            "at least 0.95",
            0.9583,
            0.9167,
            0.9917,
            None,
            None,
            0.9667,
            "INCONCLUSIVE",
            few,
        ),
        ("tool_calls.stream_parity", "at least 1", None, None, None, None, None, None, "SKIPPED", "not asked for"),
    ]
    return {"name": "default", "sha256": "ab12" * 16, "checks": [dict(zip(keys, row)) for row in rows]}


def _metrics() -> dict[str, Any]:
    domains = {}
    for number, domain in enumerate(("code", "tools", "prose", "multilingual")):
        grown = 1 + 0.173 * number
        ppl = {"reference": 2.817 * grown, "quantized": 2.846 * grown, "ratio": 1.0103 + 0.0013 * number}
        shares = {"mean": 0.01983, "median": 0.003917, "p99": 0.2846, "p999": 1.173, "max": 6.211}
        kld = {name: value * grown for name, value in shares.items()}
        rates = {"same_top1": 0.9411 - 0.0097 * number, "rms_delta_p": 0.03817 * grown}
        domains[domain] = {"ppl": ppl, "kld": kld, **rates, "scored_tokens": 41_811 + 13 * number}
    return {
        "ppl": {"reference": 4.8567, "quantized": 4.9126, "ratio": 1.0115},
        "kld": {"mean": 0.02823, "median": 0.005261, "p99": 0.3911, "p999": 1.642, "max": 9.137},
        "same_top1": 0.9251,
        "rms_delta_p": 0.04472,
        "finite": 1.0,
        "captured_mass": 0.9968,
        "scored_tokens": 167_772,
        "top": 128,
        "domains": domains,
        "tool_calls": _calls(0.0) | {"categories": {"parallel": _calls(0.0311), "nested": _calls(0.0523)}},
        "layers": {
            "expert_error_max": 0.3127,
            "expert_error_median": 0.06174,
            "expert_gain_min": 0.9618,
            "expert_gain_max": 1.0137,
            "routing_min": 0.9319,
            "attention_error_max": 0.00417,
        },
    }


def _calls(less: float) -> dict[str, float]:
    rates = {
        "trigger_f1": 0.9817,
        "match_rate": 0.9796,
        "schema_accuracy": 0.9903,
        "tool_name_match": 0.9845,
        "arg_exact": 0.8712,
        "arg_match": 0.9127,
        "call_count_cos": 0.9951,
        "parser_fail": 0.0527,
        "think_integrity": 0.9962,
        "interleaved_success": 0.9583,
    }
    return {name: rate - less for name, rate in rates.items()}


def _reference_calls() -> dict[str, Any]:
    whole = {name: value + 0.0033 for name, value in _calls(0.0).items()} | {
        "arg_exact": 0.9412,
        "interleaved_success": 0.9667,
    }
    return whole | {"categories": {"parallel": _calls(0.0211)}}


def _histogram() -> dict[str, list[Any]]:
    random = np.random.default_rng(1)
    edges = np.logspace(-6, 1, 57)
    counts, _ = np.histogram(np.clip(random.lognormal(-5.2, 2.1, 167_772), edges[0], edges[-1] * 0.999), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _layers() -> dict[str, Any]:
    random = np.random.default_rng(2)
    by_layer = 0.045 + 0.03 * np.linspace(0, 1, LAYERS) ** 2
    by_layer[-1] *= 1.9
    error = by_layer[:, None] * random.lognormal(0, 0.22, (LAYERS, EXPERTS))
    error[17, 93], error[41, 200] = 0.3127, 0.2713
    gain = 1 - error**2 * 0.3 + random.normal(0, 0.002, error.shape)
    routing = 0.985 - 0.05 * np.linspace(0, 1, LAYERS) + random.normal(0, 0.003, LAYERS)
    rows: list[list[float | None]] = [[round(float(value), 6) for value in row] for row in error]
    rows[3][7] = None  # an expert that no token reached
    return {"error": rows, "gain": gain.round(6).tolist(), "routing": routing.round(6).tolist()}


def _worst() -> list[dict[str, Any]]:
    context = (
        "def merge_intervals(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:\n"
        '    """Join intervals that touch or overlap."""\n'
        "    merged: list[tuple[int, int]] = []\n    for start, end in sorted(intervals):\n        if merged and start"
    )
    found = []
    for number in range(10):
        right = [" <=", " <", " ==", " -", " >"]
        reference = [{"text": text, "p": share} for text, share in zip(right, (0.9127, 0.0518, 0.0121, 0.0073, 0.0031))]
        wrong = [" <", " <=", " in", "\n", " and"]
        quantized = [{"text": text, "p": share} for text, share in zip(wrong, (0.7719, 0.1184, 0.0442, 0.0187, 0.0092))]
        one = {
            "domain": ("code", "tools", "prose", "multilingual")[number % 4],
            "passage": f"intervals-{number}",
            "position": 211 + 37 * number,
            "kld": 9.137 - 0.613 * number,
            "context": context,
            "actual": " <=",
            "reference": reference,
            "quantized": quantized,
        }
        found.append(one)
    arabic = {" النتيجة": 0.7413, " القيمة": 0.1127, " الناتج": 0.0712, "\n": 0.0211, " return": 0.0107}
    found[1] |= {"reference": [{"text": text, "p": p} for text, p in arabic.items()]}
    found[1] |= {"context": "اكتب دالة تحسب مجموع الأعداد الزوجية في القائمة، ثم أعد", "actual": " النتيجة"}
    found[2] |= {
        "context": '<minimax:tool_call>\n<invoke name="search_files">\n<parameter name="path">',
        "actual": "src",
    }
    return found


def _differences() -> list[dict[str, Any]]:
    return [
        {
            "request": "flight-rebooking-3",
            "step": 1,
            "category": "nested",
            "prompt": "Move Ms Okafor's booking QK7731 to Friday's first flight; window seat, vegetarian meal.",
            "kind": "arguments",
            "reference": {
                "content": "",
                "reasoning": "The booking is known. I need the Friday date, 27 November, and the seat preference.",
                "calls": [
                    {
                        "name": "change_booking",
                        "arguments": '{"booking": "QK7731", "date": "2026-11-27", "passengers": [{"name": "Okafor", '
                        '"seat": "window", "meal": "vegetarian"}], "flexible": false}',
                    }
                ],
            },
            "quantized": {
                "content": "",
                "reasoning": "The booking is known. I need the Friday date, 28 November, and the seat preference.",
                "calls": [
                    {
                        "name": "change_booking",
                        "arguments": '{"booking": "QK7731", "date": "2026-11-28", "passengers": [{"name": "Okafor", '
                        '"seat": "window"}], "flexible": "false"}',
                    }
                ],
            },
        },
        {
            "request": "weather-two-cities",
            "step": 0,
            "category": "parallel",
            "prompt": "Wie wird das Wetter morgen in Köln und in Zürich?",
            "kind": "count",
            "reference": {
                "content": "",
                "reasoning": "Two cities, two calls.",
                "calls": [
                    {"name": "weather", "arguments": '{"city": "Köln", "day": "tomorrow"}'},
                    {"name": "weather", "arguments": '{"city": "Zürich", "day": "tomorrow"}'},
                ],
            },
            "quantized": {
                "content": "",
                "reasoning": "Two cities, two calls.",
                "calls": [{"name": "weather", "arguments": '{"city": "Köln", "day": "tomorrow"}'}],
            },
        },
        {
            "request": "no-tool-fits-11",
            "step": 0,
            "category": "irrelevance",
            "prompt": "Who wrote the Ninth Symphony?",
            "kind": "trigger",
            "reference": {"content": "Beethoven, completed in 1824.", "reasoning": "No tool is needed.", "calls": []},
            "quantized": {
                "content": "",
                "reasoning": "I can search for it.",
                "calls": [{"name": "web_search", "arguments": '{"query": "Ninth Symphony composer"}'}],
            },
        },
    ]
