"""The local runtime: runs a job's plan as child processes on loopback, and supervises them as the operator would.

    commands.run -> session: preflight -> folder (lock, attempt) -> runtime
    runtime: reaper, S3 server, verifier, engines -> learner -> drain        view: what a person sees meanwhile

Each file says its part. Linux only: process clean-up rests on /proc, parent-death signals and sessions.
"""
