"""Servers of the runtimes: started, awaited, attached to and ended, with flags out of one table."""
