"""Runs untrusted code: `pool` is what the rest of the service uses.

    pool -> slot: one zygote at the other end of a Unix socket -> an item: one fork of the zygote, jailed, with inputs and without answers
         <- canonical bytes, read to their end, bounded in size and time, and compared out here

`source` says where slots come from: children of the service, or, in a pod, `host` in a container of its own. `zygote`, `landlock`,
`seccomp` and `canonical` run on the untrusted side too, and import nothing but the standard library.
"""
