"""Files to a Hub repo: a staging branch that fills file by file, a journal of what is up, one commit on main."""
