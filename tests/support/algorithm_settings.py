"""Every algorithm, with settings under which it learns on completions of at most eight tokens."""

ALGORITHMS = {
    "grpo": {}, "drGrpo": {"normalizerTokens": 8}, "rloo": {}, "reinforcePlusPlus": {}, "dapo": {"overlong": {"bufferTokens": 4}},
    "gspo": {}, "cispo": {}, "sapo": {}, "dppoTv": {}, "ppo": {},
}  # fmt: skip


def correction_for(algorithm):
    """The off-policy correction of a job: DPPO-TV, whose ratio is taken to the sampler, has none."""
    return {"none": {}} if "dppoTv" in algorithm else {"tokenTruncated": {"cap": 2.0}}
