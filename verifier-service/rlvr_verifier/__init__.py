"""The verifier service: samples tasks, keeps their answers, and judges completions."""
