"""Whether the reward can be believed: rewards corrected by audits, error rates of verifiers, drift, and what follows from them."""
