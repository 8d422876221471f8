"""KeOps: symbolic reductions, compiled on first use without leaving a trace in the process."""
