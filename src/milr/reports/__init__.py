"""What is told of runs: read journals, statistics, tables, pages. Writes nothing into a run."""
