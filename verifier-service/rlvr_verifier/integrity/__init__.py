"""What makes verdicts believable: audits by a second verifier, canaries, and the certification of environments."""
