"""Tool-call fidelity: requests, asking servers, reading raw completions, and the metrics of both."""
