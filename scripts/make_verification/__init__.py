"""Sources and maker of the requests and texts that `quantkit verify` ships with."""
