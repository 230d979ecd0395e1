"""The card of a repo out of the facts of its quantizations; pure functions, the Hub is not asked."""

from quantkit.hub.card.card import Card, build_card
from quantkit.hub.card.check import check_card
from quantkit.hub.card.collect import facts_of
from quantkit.hub.card.facts import RECORDS, QuantFacts, ReportFacts, SourceFacts
from quantkit.hub.card.licence import License, license_findings, license_of
from quantkit.hub.card.reports import public_report, read_report, report_matches

__all__ = [
    "RECORDS",
    "Card",
    "License",
    "QuantFacts",
    "ReportFacts",
    "SourceFacts",
    "build_card",
    "check_card",
    "facts_of",
    "license_findings",
    "license_of",
    "public_report",
    "read_report",
    "report_matches",
]
