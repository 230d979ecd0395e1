"""The report of a verification as one HTML page, as Markdown and as JSON; all three hold the same figures."""
