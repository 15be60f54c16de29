"""`rlvr rescore`: stored rollouts, judged again by the verifier of today. What is stored is read and never changed."""
