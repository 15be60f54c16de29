"""The operator: plans the workloads of an RLVRJob, and runs them."""
