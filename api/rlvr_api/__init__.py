"""The contract between the parts of RLVR Operator: specs, wire messages, names. Depends on pydantic alone."""
