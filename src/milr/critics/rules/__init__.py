"""Rules that need no model: benchmarks' own verdicts out of detections, and what a prompt asks for."""
