"""A learner of several processes, with the model sharded over them by FSDP2; one process is the case without any of it."""
