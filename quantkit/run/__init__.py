"""Running a plan: items, memory, disk, journal, threads. Nothing here knows tensor names or numerics."""
